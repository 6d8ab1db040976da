"""Code, judged by EvalPlus: right when it passes the base and the extra tests together."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eval import sandbox

log = logging.getLogger(__name__)

Rules = Literal["humaneval", "mbpp"]
MEMORY_BYTES = 2 * 2**30  # address space of one judged sample
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_OPENING = re.compile(r"^[ \t]*```[ \t]*(?:python|py)?[ \t]*\n", re.MULTILINE | re.IGNORECASE)


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
    if opening and closing and opening.start() == closing.start():
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
    done = _run_evalplus(cases, named, rules)
    if done is not None:
        return dict(zip(cases, done, strict=True))
    if len(cases) == 1:
        log.warning("a sample broke the judge and counts as wrong")
        return {cases[0]: False}
    half = len(cases) // 2
    return {**_verdicts(cases[:half], named, rules), **_verdicts(cases[half:], named, rules)}


def _run_evalplus(
    cases: Sequence[tuple[str, str]], named: Mapping[str, Mapping[str, Any]], rules: Rules
) -> list[bool] | None:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="harc-judge-") as folder:
        workdir = Path(folder)
        problems, samples = workdir / "problems.jsonl", workdir / "samples.jsonl"
        asked = {identity for identity, _ in cases}
        _write(problems, [record for identity, record in named.items() if identity in asked])
        _write(samples, [{"task_id": named[identity]["task_id"], "solution": code} for identity, code in cases])
        outcome = sandbox.run(
            "evalplus_child.py",
            [rules, str(samples), str(workers)],
            workdir,
            sandbox.Limits(seconds=300 + 5 * len(cases) / workers),
            {
                "HUMANEVAL_OVERRIDE_PATH" if rules == "humaneval" else "MBPP_OVERRIDE_PATH": str(problems),
                "EVALPLUS_MAX_MEMORY_BYTES": str(MEMORY_BYTES),
                "XDG_CACHE_HOME": str(workdir / "cache"),
            },
        )
        return _read(workdir / "samples_eval_results.json", cases, named, outcome)


def _read(
    path: Path, cases: Sequence[tuple[str, str]], named: Mapping[str, Mapping[str, Any]], outcome: sandbox.Outcome
) -> list[bool] | None:
    """EvalPlus's verdicts in the order of `cases`, or None if it broke."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["eval"]
        verdicts = []
        for identity, code in cases:
            result = results[named[identity]["task_id"]].pop(0)
            if result["solution"] != code:
                raise ValueError("the judge's file does not hold the samples in order")
            verdicts.append(result["base_status"] == "pass" and result["plus_status"] == "pass")
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = "took too long" if outcome.status is None else f"ended with status {outcome.status}"
        log.warning("EvalPlus %s on %d samples (%s): %s", why, len(cases), error, outcome.log[-1000:].strip())
        return None
    return verdicts


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
