"""One job in a forked, locked process: code and inputs come in, what its function returns goes out, a line each.

The first line out says that the code ran; then one line a call, [value, seconds], or an object if the call failed,
which is the last. Nothing written here is believed by whoever reads it.
"""

import io
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from evalplus.eval.utils import reliability_guard, swallow_io, time_limit

from eval.sandbox import wire

MEMORY_BYTES = 4 * 2**30  # EvalPlus's own bound on a sample
REFERENCE_BYTES = 8 * 2**30  # of a problem's own solution, whose answers are turned into lines here
READY = b"true\n"
_FLUSH_BYTES, _FLUSH_SECONDS = 2**16, 0.1


def guard(sample: bool) -> None:
    """Bounds memory; for a sample by EvalPlus's own guard, since its verdicts are on code that runs under it."""
    if not sample:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        bound = REFERENCE_BYTES if hard == resource.RLIM_INFINITY else min(REFERENCE_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        return
    bounds = [MEMORY_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        bounds += [hard for hard in resource.getrlimit(kind)[1:] if hard != resource.RLIM_INFINITY]
    reliability_guard(min(bounds))


def encode(code: str, entry_point: str, inputs: list[Any], limits: list[float], listed: bool) -> bytes:
    """A job as bytes.

    Args:
        code: the program.
        entry_point: the function that it defines.
        inputs: the arguments of each call.
        limits: seconds that each call may take; none for a reference solution.
        listed: whether what is returned may be any iterable, and is listed.
    """
    return wire.dumps([code, entry_point, inputs, limits, listed]).encode()


def run(source: int, target: int, sample: bool) -> None:
    """Reads a job from `source` and writes its lines to `target`."""
    code, entry_point, inputs, limits, listed = wire.loads(_read_all(source))
    out = _Writer(target)
    names: dict[str, Any] = {}
    with swallow_io():
        exec(code, names)
        function = names[entry_point]
    out.write(READY)
    out.flush()
    if not sample:
        sys.stdout = sys.stderr = io.StringIO()
    for arguments, limit in zip(inputs, limits or [None] * len(inputs), strict=True):
        try:
            value, seconds = _call(function, arguments, limit if sample else None)
            if listed and type(value) not in (str, list, tuple, set, frozenset, dict):
                value = list(value)
            line = wire.dumps([value, seconds])
        except BaseException as error:
            out.write(wire.dumps({type(error).__name__: 1}).encode() + b"\n")
            break
        out.write(line.encode() + b"\n")
    out.flush()


def _call(function: Callable[..., Any], arguments: Any, limit: float | None) -> tuple[Any, float]:
    if limit is None:
        start = time.time()
        return function(*arguments), time.time() - start
    with time_limit(limit), swallow_io():
        return function(*arguments), 0.0


def _read_all(source: int) -> bytes:
    pieces = list(_pieces(source))
    os.close(source)
    return b"".join(pieces)


def _pieces(source: int) -> Iterator[bytes]:
    while piece := os.read(source, 2**20):
        yield piece


class _Writer:
    """Keeps lines back for a moment, so that a thousand quick calls do not wake the reader a thousand times."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._kept: list[bytes] = []
        self._bytes = 0
        self._last = time.monotonic()

    def write(self, line: bytes) -> None:
        self._kept.append(line)
        self._bytes += len(line)
        if self._bytes >= _FLUSH_BYTES or time.monotonic() - self._last > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        rest = memoryview(b"".join(self._kept))
        while rest:
            rest = rest[os.write(self._target, rest) :]
        self._kept, self._bytes, self._last = [], 0, time.monotonic()
