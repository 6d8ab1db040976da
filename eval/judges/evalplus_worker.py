"""The trusted process that judges: it runs programs in a locked interpreter of its own and compares what they return.

    python -P -m eval.judges.evalplus_worker

One JSON line in, a problem with programs; lines out: what the sandbox holds (once, at the start), then per problem
`{"own": true}` or what is wrong with its own solution, and a verdict a program. No generated code runs here.
"""

import hashlib
import json
import os
import resource
import sys
import traceback
import types
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.sandbox import probe
from eval.sandbox.child import die_with_parent
from eval.sandbox.isolation import Isolation
from eval.sandbox.process import SandboxError, Template, TooMuch

MEMORY_BYTES = 12 * 2**30
_TOO_MUCH = '"too much"'  # kept in place of answers
KEPT_SECONDS = 0.5  # a solution that takes longer has its answers kept


def main() -> None:
    die_with_parent()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    bound = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    answers, sys.stdout = sys.stdout, sys.stderr

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    # EvalPlus imports Hugging Face datasets for a benchmark that is not run here; it would be most of the start-up.
    unused = types.ModuleType("datasets")
    setattr(unused, "load_dataset", None)  # noqa: B010
    sys.modules["datasets"] = unused
    from eval.judges import replay

    replay.prepare()
    isolation = Isolation(settings["mode"], tuple(settings["prefix"]))
    with Template(isolation, settings["strict"]) as template:
        say(**asdict(probe.prove(template)))
        for line in sys.stdin:
            _judge(template, json.loads(line), say)


def _judge(template: Template, unit: dict[str, Any], say: Any) -> None:
    from eval.judges import replay

    problem, rules = unit["problem"], unit["rules"]
    try:
        expected = {part: _expected(template, problem, part, rules, unit["keep"]) for part in replay.PARTS}
    except replay.BrokenSolution as error:
        say(own=str(error))
        return
    except TooMuch as error:
        say(own=True)
        for _ in unit["codes"]:
            say(right=False, why=f"{error}, as the right answers do: no program passes")
        return
    say(own=True)
    for code in unit["codes"]:
        why, right = "", False
        try:
            right = all(
                replay.passes(template, problem, code, part, rules, expected[part], unit["seconds"])
                for part in replay.PARTS
            )
        except SandboxError:
            raise
        except Exception as error:  # costs this sample, not the evaluation
            why = f"{type(error).__name__}: {error}"
        say(right=right, why=why)


def _expected(template: Template, problem: dict[str, Any], part: str, rules: str, keep: str) -> Any:
    """The expected answers, from the folder `keep` where they are there; those that take long to make are put there."""
    from eval.judges import replay

    relevant = [problem[key] for key in ("task_id", "prompt", "canonical_solution", "entry_point", f"{part}_input")]
    identity = json.dumps([1, rules, sys.version_info[:2], relevant], sort_keys=True)
    kept = Path(keep) / f"{hashlib.sha256(identity.encode()).hexdigest()}.jsonl"
    if kept.is_file():
        lines = kept.read_text(encoding="utf-8").splitlines()
        if lines[:1] == [_TOO_MUCH]:
            raise TooMuch("returns more than it may")
        return replay.expected_from(lines, problem, rules)
    try:
        expected, lines = replay.expected_of(template, problem, part, rules)
    except TooMuch:
        _keep(kept, [_TOO_MUCH])
        raise
    if sum(expected.seconds) > KEPT_SECONDS:
        _keep(kept, lines)
    return expected


def _keep(place: Path, lines: Sequence[str]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(place)
    except OSError as error:
        print(f"answers cannot be kept in {place.parent}: {error}", file=sys.stderr)


if __name__ == "__main__":
    status = 0
    try:
        main()
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)
