"""Code judged by EvalPlus's rules: problems are dealt to trusted worker processes, their verdicts read back.

A worker runs programs in a sandbox of its own (`eval.sandbox`) and compares what they return. One that is lost costs
the sample it was at; another goes on with the rest.
"""

import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from eval.sandbox import child
from eval.sandbox.isolation import Isolation, isolation
from eval.sandbox.permission import accept
from eval.sandbox.probe import Proof

log = logging.getLogger(__name__)

Rules = Literal["humaneval", "mbpp"]
# EvalPlus's own least wall time for one test of a sample. On a machine too busy to give a sample its core, raise it.
SECONDS_PER_TEST = 1.0
_START_SECONDS = 300.0  # imports and the probe, on a cold disk
_OWN_SECONDS = 3600.0  # a problem's own solution on all its inputs
_SAMPLE_SECONDS = 300.0  # EvalPlus gives a sample two minutes, in two parts


class JudgeError(RuntimeError):
    """The judge does not run, or not on a problem's own solution; no sample can be judged."""


@dataclass(frozen=True)
class Unit:
    """A problem, an EvalPlus record, with the programs to judge."""

    problem: Mapping[str, Any]
    codes: Sequence[str]


def run(units: Sequence[Unit], rules: Rules, allow_unsandboxed: bool = False) -> list[list[bool]]:
    """Whether each program of each unit passes the base and the extra tests.

    Args:
        units: problems that differ.
        rules: the data set whose rules hold; see `eval.judges.code.judge_code`.
        allow_unsandboxed: whether programs may run where the sandbox does not hold.

    Raises:
        JudgeError: a problem's own solution does not run, or the judge itself does not.
        eval.sandbox.process.SandboxError: the sandbox does not hold.
    """
    verdicts: list[list[bool]] = [[] for _ in units]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    queue = sorted(range(len(units)), key=lambda index: -_weight(units[index]))
    lock, stop = threading.Lock(), threading.Event()
    around = isolation()

    workers: list[_Worker] = []

    def work() -> None:
        with _Worker(around, allow_unsandboxed, stop) as worker:
            workers.append(worker)
            while not stop.is_set():
                with lock:
                    if not queue:
                        return
                    index = queue.pop(0)
                verdicts[index] = worker.judge(units[index], rules)

    with ThreadPoolExecutor(max(1, min(cores, len(units)))) as pool:
        futures = [pool.submit(work) for _ in range(min(cores, len(units)))]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()
            for worker in workers:
                worker.kill()
    return verdicts


def _weight(unit: Unit) -> int:
    return len(unit.codes) * (len(unit.problem["base_input"]) + len(unit.problem["plus_input"]))


def _kept_answers() -> Path:
    """Where answers that took long to make are kept, by the content of their problem."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harc" / "expected"


class _Worker:
    """One trusted process, started when first needed and again when it was lost."""

    def __init__(self, around: Isolation, allow_unsandboxed: bool, stop: threading.Event) -> None:
        self._around, self._allow_unsandboxed, self._stop = around, allow_unsandboxed, stop
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._buffer = b""

    def judge(self, unit: Unit, rules: Rules) -> list[bool]:
        """The verdicts on one problem's programs, in order."""
        verdicts: list[bool] = []
        while len(verdicts) < len(unit.codes) or not unit.codes:
            own = self._ask(unit, rules, len(verdicts))
            if own is not True:
                raise JudgeError(
                    f"{unit.problem['task_id']}'s own solution does not run in the sandbox: {own}. "
                    "Correct the problem, or take it out of the data"
                )
            while len(verdicts) < len(unit.codes):
                answer = self._answer(_SAMPLE_SECONDS)
                if answer is None and self._stop.is_set():
                    raise JudgeError("the judge was stopped")
                if answer is None:
                    log.warning("%s: a sample broke the judge and counts as wrong", unit.problem["task_id"])
                    self.close()
                    verdicts.append(False)
                    break
                if answer["why"]:
                    log.warning("%s: a sample counts as wrong: %s", unit.problem["task_id"], answer["why"])
                verdicts.append(bool(answer["right"]))
            if not unit.codes:
                break
        return verdicts

    def _ask(self, unit: Unit, rules: Rules, done: int) -> bool | str:
        """Sends what is left of the unit; what the worker says of the problem's own solution."""
        if self._child is None:
            self._start()
        self._send(
            {
                "problem": dict(unit.problem),
                "codes": list(unit.codes[done:]),
                "rules": rules,
                "seconds": SECONDS_PER_TEST,
                "keep": str(_kept_answers()),
            }
        )
        answer = self._answer(_OWN_SECONDS)
        if answer is None:
            raise JudgeError(f"the judge ends on {unit.problem['task_id']}'s own solution: {self._last_words()}")
        own: bool | str = answer["own"]
        return own

    def _start(self) -> None:
        self._said = child.said()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "eval.judges.evalplus_worker"],
            cwd="/",
            env=child.clean_environment() | {"PYTHONPATH": str(child.ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
        )
        self._buffer = b""
        strict = not self._allow_unsandboxed
        self._send({"mode": self._around.mode, "prefix": list(self._around.prefix), "strict": strict})
        proof = self._answer(_START_SECONDS)
        if proof is None:
            raise JudgeError(f"the judge does not start: {self._last_words()}")
        accept(self._around.mode, Proof(**proof), self._allow_unsandboxed)

    def _send(self, what: Mapping[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write((json.dumps(what) + "\n").encode())
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, or rather its absence, says so

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        """The worker's next line; None where it is lost or takes too long."""
        assert self._child is not None and self._child.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(self._child.stdout.fileno(), 2**16)
                if not piece:
                    return None
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        assert self._child is not None and self._said is not None
        child.kill_group(self._child)
        return child.last_words(self._said)

    def kill(self) -> None:
        """Ends the process, from any thread; whoever waits for its answer gets none."""
        if (process := self._child) is not None:
            process.kill()

    def close(self) -> None:
        """Ends the worker and, with it, its sandbox."""
        if self._child is not None:
            child.kill_group(self._child)
            self._child = None
        if self._said is not None:
            self._said.close()
            self._said = None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
