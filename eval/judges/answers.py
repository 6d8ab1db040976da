"""Math answers: numbers compared as numbers, LaTeX compared by math-verify in a child process that can be killed."""

import atexit
import functools
import json
import logging
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from eval.sandbox import child as processes

log = logging.getLogger(__name__)

SECONDS = 30.0  # wall time of one comparison; math-verify's own limits (5 s a step) end most earlier
START_SECONDS = 120.0  # the child's imports included
MEMORY_BYTES = 4 * 2**30
LONGEST = 20_000  # characters of a response that are read, from its end


def numbers_equal(gold: str, answer: str) -> bool:
    """Whether two numbers as people write them ("$1,200.00", "1200") are the same."""
    expected, found = _number(gold), _number(answer)
    return expected is not None and expected == found


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.replace(",", "").replace("$", "").replace("−", "-").strip().rstrip("."))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


class MathVerifier:
    """A running math-verify process; started when first asked, again after it had to be killed, ended at exit."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._fresh = True

    def right(self, gold: str, responses: Sequence[str]) -> list[bool]:
        """Which responses hold the gold answer; equal responses are compared once. Safe to call from any thread."""
        with self._lock:
            verdicts = {response: self._ask(gold, response) for response in dict.fromkeys(responses)}
        return [verdicts[response] for response in responses]

    def close(self) -> None:
        """Ends the child, if there is one."""
        if self._child is not None:
            processes.kill_group(self._child)
        self._child = None

    def _ask(self, gold: str, response: str) -> bool:
        if self._child is not None and self._child.poll() is not None:
            self.close()  # it ended with the thread that started it
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write((json.dumps([gold, response[-LONGEST:]]) + "\n").encode())
            child.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                ready = selector.select(START_SECONDS if self._fresh else self._seconds)
            line = child.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        if line:
            self._fresh = False
            return bool(json.loads(line))
        if self._fresh and child.poll() is not None:
            self.close()
            raise RuntimeError("the math-verify process does not start: is math-verify[antlr4-9-3] installed?")
        log.warning("an answer took too long to compare with %r and counts as wrong: %r", gold, response[-200:])
        self.close()
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        self._fresh = True
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "eval.sandbox.math_child"],
            cwd="/",
            env=processes.clean_environment() | {"PYTHONPATH": str(processes.ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=processes.limiter({"AS": MEMORY_BYTES, "FSIZE": 0, "CORE": 0}),
        )
        return self._child


@functools.cache
def shared_verifier() -> MathVerifier:
    """The one verifier of this process: its imports are paid once."""
    verifier = MathVerifier()
    atexit.register(verifier.close)
    return verifier
