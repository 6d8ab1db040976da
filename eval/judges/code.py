"""Code, judged by EvalPlus: right when it passes the base and the extra tests together."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.judges import evalplus
from eval.judges.evalplus import Rules

log = logging.getLogger(__name__)

_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_OPENING = re.compile(r"\A\s*```\w*[ \t]*\n|^[ \t]*```[ \t]*(?:python|py)\w*[ \t]*\n", re.MULTILINE | re.IGNORECASE)


def judge_code(
    problems: Sequence[Mapping[str, Any] | str], responses: Sequence[Sequence[str]], rules: Rules = "humaneval"
) -> list[list[bool]]:
    """Which responses solve their problem.

    Args:
        problems: EvalPlus records, as mappings or JSON.
        responses: the texts drawn for each problem, from just after the open code fence.
        rules: "mbpp" for the MBPP+ release, whose inputs EvalPlus re-types by problem number and some of whose answers
            it compares by name; "humaneval" for everything else.
    """
    records = [json.loads(problem) if isinstance(problem, str) else dict(problem) for problem in problems]
    cases: dict[tuple[str, str], bool | None] = {}
    keys: list[list[tuple[str, str]]] = []
    named: dict[str, dict[str, Any]] = {}
    for record, texts in zip(records, responses, strict=True):
        identity = json.dumps(record, sort_keys=True)
        # Ids matter to EvalPlus for the MBPP+ release alone; elsewhere two problems may well share one.
        task_id = record["task_id"] if rules == "mbpp" else f"HumanEval/{len(named)}"
        if identity not in named:
            named[identity] = {**record, "task_id": task_id}
        keys.append([(identity, extract_code(text, record)) for text in texts])
        cases.update({key: None for key in keys[-1]})
    verdicts = _verdicts(list(cases), named, rules)
    return [[verdicts[key] for key in row] for row in keys]


def extract_code(response: str, problem: Mapping[str, Any]) -> str:
    """The program in a response that goes on from an open code fence.

    It ends at the closing fence; a response that opens a fence of its own is read from there. What stands above the
    function in the problem (imports, helpers) is put before it, and a bare function body is completed by the prompt.
    """
    opening = _OPENING.search(response)
    closing = _FENCE.search(response)
    if opening and closing and closing.start() < opening.end():
        response = response[opening.end() :]
        closing = _FENCE.search(response)
    code = response[: closing.start()] if closing else response
    entry_point = re.escape(problem["entry_point"])
    if re.search(rf"^\s*(?:async\s+)?def\s+{entry_point}\b|^{entry_point}\s*=", code, re.MULTILINE):
        preamble = re.split(rf"^def\s+{entry_point}\b", problem["prompt"], maxsplit=1, flags=re.MULTILINE)
        return preamble[0] + "\n" + code if len(preamble) == 2 else code
    return problem["prompt"] + code


def _verdicts(
    cases: list[tuple[str, str]], named: Mapping[str, Mapping[str, Any]], rules: Rules
) -> dict[tuple[str, str], bool]:
    """Judges the cases together. If that run breaks, halves it until the one that breaks it is found: it is wrong."""
    if not cases:
        return {}
    verdicts = evalplus.run(cases, named, rules)
    if verdicts is not None:
        return dict(zip(cases, verdicts, strict=True))
    identity = cases[0][0]
    if len(cases) == 1:
        # Is it the sample, or would the problem's own solution break the judge too?
        record = named[identity]
        evalplus.require_working([(identity, record["prompt"] + record["canonical_solution"])], named, rules)
        log.warning("%s: a sample broke the judge and counts as wrong", record["task_id"])
        return {cases[0]: False}
    evalplus.require_working()
    half = len(cases) // 2
    return {**_verdicts(cases[:half], named, rules), **_verdicts(cases[half:], named, rules)}
