"""Code, judged by EvalPlus: right when it passes the base and the extra tests together."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.judges import evalplus
from eval.judges.evalplus import Rules

_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_OPENING = re.compile(r"\A\s*```\w*[ \t]*\n|^[ \t]*```[ \t]*(?:python|py)\w*[ \t]*\n", re.MULTILINE | re.IGNORECASE)


def judge_code(
    problems: Sequence[Mapping[str, Any] | str],
    responses: Sequence[Sequence[str]],
    rules: Rules = "humaneval",
    allow_unsandboxed: bool = False,
) -> list[list[bool]]:
    """Which responses solve their problem; equal ones are judged once.

    Args:
        problems: EvalPlus records, as mappings or JSON.
        responses: the texts drawn for each problem, from just after the open code fence.
        rules: "mbpp" for the MBPP+ release, whose inputs EvalPlus re-types by problem number and some of whose answers
            it compares by name; "humaneval" for everything else.
        allow_unsandboxed: whether they may run where the sandbox does not hold.

    Raises:
        eval.judges.evalplus.JudgeError: a problem's own solution does not run, or the judge itself does not.
        eval.sandbox.process.SandboxError: the sandbox does not hold.
    """
    records = [json.loads(problem) if isinstance(problem, str) else dict(problem) for problem in problems]
    named: dict[str, dict[str, Any]] = {}
    programs: dict[str, dict[str, None]] = {}
    rows: list[tuple[str, list[str]]] = []
    for record, texts in zip(records, responses, strict=True):
        identity = json.dumps(record, sort_keys=True)
        named[identity] = record
        row = [extract_code(text, record) for text in texts]
        programs.setdefault(identity, {}).update(dict.fromkeys(row))
        rows.append((identity, row))
    units = [evalplus.Unit(named[identity], list(codes)) for identity, codes in programs.items()]
    verdicts = {
        identity: dict(zip(unit.codes, judged, strict=True))
        for identity, unit, judged in zip(programs, units, evalplus.run(units, rules, allow_unsandboxed), strict=True)
    }
    return [[verdicts[identity][code] for code in row] for identity, row in rows]


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
    if re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{entry_point}\b|^{entry_point}\s*=", code, re.MULTILINE):
        preamble = re.split(rf"^def[ \t]+{entry_point}\b", problem["prompt"], maxsplit=1, flags=re.MULTILINE)
        return preamble[0] + "\n" + code if len(preamble) == 2 else code
    return problem["prompt"] + code
