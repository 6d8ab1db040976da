"""Judges: which responses are right, by the rules of a task. `judge` takes records of any source."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.judges.registry import find_judge, register_judge
from eval.sandbox import permission
from eval.tasks import score

__all__ = ["judge", "register_judge"]


def judge(
    task: str,
    records: Sequence[Mapping[str, Any]],
    responses: Sequence[str],
    allow_unsandboxed: bool = False,
) -> list[bool]:
    """Whether each response is right for its record, by the filters and the judge of the task's file.

    Args:
        task: a task's name; its YAML decides how the answer is found and compared. Or the name of a registered judge.
        records: each with the gold `answer` (math) or the EvalPlus record `problem` (code).
        responses: one a record; for code, the text after the task's prefix, or a whole response with a fenced block.
        allow_unsandboxed: whether generated code may run where the sandbox does not hold.

    Raises:
        ValueError: an unknown task, or not one response a record.
        eval.sandbox.process.SandboxError: the sandbox that generated code needs does not hold here.
    """
    if len(records) != len(responses):
        raise ValueError(f"{len(records)} records but {len(responses)} responses")
    own = find_judge(task)
    if own is not None:
        return [bool(own(record, response)) for record, response in zip(records, responses, strict=True)]
    with permission.allowing(allow_unsandboxed):
        return [verdicts[0] for verdicts in score(task, records, [[response] for response in responses])]
