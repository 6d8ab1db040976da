"""Runs EvalPlus in the sandbox: a data set and samples in its files, its verdicts read back.

The expected answers of a large data set take a minute or two to compute (1.5 minutes for MBPP+) and are kept, by the
content of the data set, in the user's cache; they come from a run of the data set's own solutions alone.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eval import sandbox

log = logging.getLogger(__name__)

Rules = Literal["humaneval", "mbpp"]
Problems = Mapping[str, Mapping[str, Any]]
# EvalPlus's own least wall time for one test of a sample. On a machine too busy to give a sample its core, raise it.
SECONDS_PER_TEST = 1.0
_OVERRIDE = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}
_LARGE = 2**20  # bytes of a data set from which its answers are kept
_ANSWERS_BYTES = 16 * 2**30  # what EvalPlus may write; a sample has a limit of its own, in the child
_PROBE = {
    "task_id": "HumanEval/0",
    "prompt": "def same(x):\n",
    "entry_point": "same",
    "canonical_solution": "    return x\n",
    "base_input": [[1]],
    "plus_input": [[2]],
    "atol": 0,
    "contract": "",
}


class JudgeError(RuntimeError):
    """EvalPlus itself does not run, or not on one of the problems; no sample can be judged."""


def run(cases: Sequence[tuple[str, str]], problems: Problems, rules: Rules) -> list[bool] | None:
    """Judges the cases in one run of EvalPlus; None if that run broke.

    Args:
        cases: (key of its problem, program) pairs, all different.
        problems: EvalPlus records with task ids that differ.
        rules: the data set whose rules hold; see `eval.judges.code.judge_code`.
    """
    verdicts, _ = _run(cases, problems, rules)
    return verdicts


def require_working(
    cases: Sequence[tuple[str, str]] = (("probe", "def same(x):\n    return x\n"),),
    problems: Problems | None = None,
    rules: Rules = "humaneval",
) -> None:
    """Raises JudgeError if EvalPlus breaks on cases that cannot be at fault."""
    named = problems if problems is not None else {"probe": _PROBE}
    verdicts, outcome = _run(cases, named, rules)
    if verdicts is None:
        which = ", ".join(str(named[key]["task_id"]) for key, _ in cases)
        raise JudgeError(f"EvalPlus does not run on {which}'s own solution: {outcome.log[-2000:].strip()}")


def _run(
    cases: Sequence[tuple[str, str]], problems: Problems, rules: Rules
) -> tuple[list[bool] | None, sandbox.Outcome]:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="harc-judge-") as folder:
        workdir = Path(folder)
        dataset, samples = workdir / "problems.jsonl", workdir / "samples.jsonl"
        asked = dict.fromkeys(key for key, _ in cases)
        _write(dataset, [problems[key] for key in asked])
        _write(samples, [{"task_id": problems[key]["task_id"], "solution": code} for key, code in cases])
        large = dataset.stat().st_size >= _LARGE
        if large:
            _place_answers(dataset, workdir, rules)
        outcome = sandbox.run(
            "evalplus_child.py",
            ["judge", rules, str(samples), str(workers), str(SECONDS_PER_TEST)],
            workdir,
            sandbox.Limits(seconds=300 + 15 * len(cases) / workers, file_bytes=_ANSWERS_BYTES),
            {
                **_environment(dataset, workdir, rules),
                # Of one sample, with what it inherits: a large data set's answers are some of it.
                "EVALPLUS_MAX_MEMORY_BYTES": str((4 if large else 2) * 2**30),
            },
        )
        return _read(workdir / "samples_eval_results.json", cases, problems, outcome), outcome


def _environment(dataset: Path, workdir: Path, rules: Rules) -> dict[str, str]:
    return {_OVERRIDE[rules]: str(dataset), "XDG_CACHE_HOME": str(workdir / "cache")}


def _place_answers(dataset: Path, workdir: Path, rules: Rules) -> None:
    """Puts the data set's kept answers where EvalPlus looks for them, computing and keeping them the first time."""
    name = f"{hashlib.md5(dataset.read_bytes()).hexdigest()}.pkl"  # the name that EvalPlus gives them
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harc" / "evalplus"
    kept, place = root / f"{rules}-{name}", workdir / "cache" / "evalplus" / name
    if not kept.is_file():
        log.info("running the %s data set's own solutions once; their answers are kept in %s", rules, root)
        limits = sandbox.Limits(seconds=3600, cpu_seconds=3600, file_bytes=_ANSWERS_BYTES)
        outcome = sandbox.run(
            "evalplus_child.py", ["answers", rules], workdir, limits, _environment(dataset, workdir, rules)
        )
        if outcome.status != 0 or not place.is_file():
            raise JudgeError(f"the data set's own solutions do not run: {outcome.log[-2000:].strip()}")
        try:
            root.mkdir(parents=True, exist_ok=True)
            partial = root / f"{name}.{os.getpid()}.part"
            shutil.copyfile(place, partial)
            partial.chmod(0o444)
            partial.replace(kept)
        except OSError as error:
            log.warning("the answers cannot be kept in %s (%s): they are computed again next time", root, error)
        return
    place.parent.mkdir(parents=True)
    place.symlink_to(kept)


def _read(
    path: Path, cases: Sequence[tuple[str, str]], problems: Problems, outcome: sandbox.Outcome
) -> list[bool] | None:
    """EvalPlus's verdicts in the order of `cases`, or None if it broke."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["eval"]
        verdicts = []
        for key, code in cases:
            result = results[problems[key]["task_id"]].pop(0)
            if result["solution"] != code:
                raise ValueError("the judge's file does not hold the samples in order")
            verdicts.append(result["base_status"] == "pass" and result["plus_status"] == "pass")
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = "took too long" if outcome.status is None else f"ended with status {outcome.status}"
        log.warning("EvalPlus %s on %d samples", why, len(cases))
        log.debug("%s: %s", error, outcome.log)
        return None
    return verdicts


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
