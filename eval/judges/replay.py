"""EvalPlus's verdict on outputs that were made elsewhere: its own comparison runs, with a function that replays them.

`unsafe_execute`, EvalPlus's loop over the tests with its tolerances, types and special oracles, is called with a
program of ours in place of the sample: its function answers each call with what the sample's locked process returned.
"""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import evalplus.eval
from evalplus.data.mbpp import mbpp_deserialize_inputs
from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS, MBPP_OUTPUT_SET_EQ_TASKS

from eval.sandbox import job, wire
from eval.sandbox.process import REFERENCE, SAMPLE, Run, Stopped, Template, TooMuch

PARTS = ("base", "plus")
REFERENCE_SECONDS = 600.0  # of one call of a problem's own solution
FACTOR = evalplus.eval.DEFAULT_GT_TIME_LIMIT_FACTOR
TASK_SECONDS = 60.0  # EvalPlus's bound on a part of a sample's tests
SLACK_SECONDS = 2.0  # that a call may take beyond its limit, which its own process keeps
COMPARE_SECONDS = 10  # for one output; a set of colliding hashes takes hours

# Run by EvalPlus as the sample's program; what it defines is `_functions`, of this module.
_PROGRAM = "from eval.judges.replay import functions\nglobals().update(functions())"
_functions: dict[str, Callable[..., Any]] = {}
_ready: list[Callable[[], None]] = []


_NO_MEMORY = json.loads(wire.dumps({"MemoryError": 1}))


class BrokenSolution(RuntimeError):
    """A problem's own solution does not run."""


@dataclass
class Expected:
    """What a problem's own solution returns to each input of a part, and the seconds that each call took."""

    outputs: list[Any]
    seconds: list[float]


def prepare() -> None:
    """Takes out of EvalPlus's loop what guards against a sample in its own process: none runs here.

    Raises:
        AttributeError: an EvalPlus whose loop has other parts than those known.
    """
    for name in ("reliability_guard", "create_tempdir", "swallow_io", "time_limit"):
        getattr(evalplus.eval, name)
        setattr(evalplus.eval, name, lambda *_, **__: contextlib.nullcontext())


def inputs_of(problem: Mapping[str, Any], part: str, rules: str) -> list[Any]:
    """The arguments of each test of a part, re-typed as EvalPlus does for MBPP+."""
    inputs = list(problem[f"{part}_input"])
    return mbpp_deserialize_inputs(problem["task_id"], inputs) if rules == "mbpp" else inputs


def expected_of(template: Template, problem: Mapping[str, Any], part: str, rules: str) -> tuple[Expected, list[str]]:
    """Runs a problem's own solution in the sandbox: what it returns, and the same as lines to keep.

    Raises:
        BrokenSolution: it does not return from every call.
        TooMuch: what it returns is larger than a program may return, or takes more memory.
    """
    inputs = inputs_of(problem, part, rules)
    code = problem["prompt"] + problem["canonical_solution"]
    data = job.encode(code, problem["entry_point"], inputs, [], False)
    lines: list[str] = []
    with template.start(REFERENCE, data) as run:
        try:
            _await_ready(run, time.monotonic() + REFERENCE_SECONDS)
            returned = []
            for _ in inputs:
                line = run.line(time.monotonic() + REFERENCE_SECONDS)
                returned.append(_returned(line))
                lines.append(line.decode())
            return _expected(returned, problem, rules), lines
        except TooMuch:
            raise
        except (Stopped, wire.WireError, RecursionError) as error:
            raise BrokenSolution(f"call {len(lines) + 1} of {len(inputs)} {part} tests: {error}") from error


def expected_from(lines: Sequence[str], problem: Mapping[str, Any], rules: str) -> Expected:
    """Reads the lines of `expected_of`; raises as `wire.loads` does."""
    return _expected([_returned(line) for line in lines], problem, rules)


def _expected(returned: Sequence[tuple[Any, float]], problem: Mapping[str, Any], rules: str) -> Expected:
    outputs = [value for value, _ in returned]
    if rules == "mbpp" and problem["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS:
        outputs = [value is not None for value in outputs]
    return Expected(outputs, [seconds for _, seconds in returned])


def passes(
    template: Template, problem: Mapping[str, Any], code: str, part: str, rules: str, expected: Expected, least: float
) -> bool:
    """Whether a program passes a part's tests, by EvalPlus's rules.

    Args:
        template: where it runs.
        problem: an EvalPlus record.
        code: the program.
        part: "base" or "plus".
        rules: "mbpp" or "humaneval".
        expected: see `expected_of`.
        least: EvalPlus's least time limit of a test, in seconds.
    """
    inputs = inputs_of(problem, part, rules)
    limits = [max(least, FACTOR * seconds) for seconds in expected.seconds]
    entry_point = problem["entry_point"]
    listed = rules == "mbpp" and entry_point in MBPP_OUTPUT_SET_EQ_TASKS
    whole = time.monotonic() + min(TASK_SECONDS, sum(limits)) + SLACK_SECONDS
    stat, details, progress = SimpleNamespace(value=None), [False] * len(inputs), SimpleNamespace(value=0)
    with template.start(SAMPLE, job.encode(code, entry_point, inputs, limits, listed)) as run, _comparing():
        left = iter(limits)

        def replayed(*_: Any) -> Any:
            signal.setitimer(signal.ITIMER_REAL, 0)
            line = run.line(min(whole, time.monotonic() + next(left) + SLACK_SECONDS))
            signal.setitimer(signal.ITIMER_REAL, COMPARE_SECONDS)
            return _returned(line)[0]

        _functions.clear()
        _functions[entry_point] = replayed
        _ready[:] = [lambda: _await_ready(run, whole)]
        evalplus.eval.unsafe_execute(
            rules,
            entry_point,
            _PROGRAM,
            inputs,
            expected.outputs,
            limits,
            problem["atol"],
            True,
            stat,
            details,
            progress,
        )
    return bool(stat.value == evalplus.eval._SUCCESS and progress.value == len(inputs) and all(details))


def functions() -> Mapping[str, Callable[..., Any]]:
    """What `_PROGRAM` defines, once the sample's own program has run."""
    _ready[0]()
    return _functions


@contextlib.contextmanager
def _comparing() -> Iterator[None]:
    """A comparison that does not end kills this process: C code would not let a handler of the alarm run."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _await_ready(run: Run, deadline: float) -> None:
    if run.line(deadline) + b"\n" != job.READY:
        raise wire.WireError("no sign that the program ran")


def _returned(line: str | bytes) -> tuple[Any, float]:
    parsed = json.loads(line)
    if parsed == _NO_MEMORY:
        raise TooMuch("took more memory than it may")
    if type(parsed) is not list or len(parsed) != 2 or type(parsed[1]) not in (int, float):
        raise wire.WireError(f"the call failed: {line[:200]!r}")
    return wire.decode(parsed[0]), float(parsed[1])
