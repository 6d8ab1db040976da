"""Judges: which responses are right, by the rules of a task. `judge` takes records of any source."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["judge"]


def judge(task: str, records: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[bool]:
    """Whether each response is right for its record, by the filters and the judge of the task's file.

    Args:
        task: a task's name; its YAML decides how the answer is found and compared.
        records: each with the gold `answer` (math) or the EvalPlus record `problem` (code).
        responses: one a record; for code, the text after the task's prefix, or a whole response with a fenced block.

    Raises:
        ValueError: an unknown task, or not one response a record.
    """
    from eval.evaluation import score

    if len(records) != len(responses):
        raise ValueError(f"{len(records)} records but {len(responses)} responses")
    return [verdicts[0] for verdicts in score(task, records, [[response] for response in responses])]
