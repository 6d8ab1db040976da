"""The proof before the first sample: a program that tries to break out, run exactly as a sample is, and must fail."""

import contextlib
import inspect
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.sandbox import attempts, job, wire
from eval.sandbox.process import REFERENCE, Stopped, Template

SECONDS = 60.0
SECRET = "harc-probe-secret"


@dataclass(frozen=True)
class Proof:
    """What a program of the sandbox tried.

    Attributes:
        held: by kind ("reading", "writing", …), the attempts that all failed.
        fell: by kind, those of the attempts that succeeded.
        trouble: what of the lockdown is missing here; "" where nothing is.
    """

    held: Mapping[str, Sequence[str]]
    fell: Mapping[str, Sequence[str]]
    trouble: str = ""


def prove(template: Template) -> Proof:
    """Tries everything of `attempts.py` in a process of the template.

    Raises:
        eval.sandbox.SandboxError: the interpreter does not start.
    """
    with _bait() as (folder, port):
        source = inspect.getsource(attempts)
        data = job.encode(source, "attempt_all", [[folder, SECRET, port, os.getpid()]], [], False)
        with template.start(REFERENCE, data) as run:
            outcome: object = None
            with contextlib.suppress(Stopped, wire.WireError):
                deadline = time.monotonic() + SECONDS
                if run.line(deadline) + b"\n" == job.READY:
                    outcome = wire.loads(run.line(deadline))
        if not isinstance(outcome, list) or not isinstance(outcome[0], dict):
            return Proof({}, {"everything": (f"the probe itself did not run: {outcome}",)}, template.trouble)
        results = outcome[0]
        secret = Path(folder) / "secret"
        if list(Path(folder).iterdir()) != [secret] or secret.read_text() != SECRET:
            results["writing"]["changed a file outside"] = True
    held: dict[str, Sequence[str]] = {}
    fell: dict[str, Sequence[str]] = {}
    for kind, tried in results.items():
        broken = tuple(name for name, succeeded in tried.items() if succeeded)
        (fell if broken else held)[kind] = broken or tuple(tried)
    return Proof(held, fell, template.trouble)


@contextlib.contextmanager
def _bait() -> Iterator[tuple[str, int]]:
    """A folder with a file to read and to change, and a port to connect to."""
    with tempfile.TemporaryDirectory(prefix="harc-probe-") as folder, socket.create_server(("127.0.0.1", 0)) as server:
        (Path(folder) / "secret").write_text(SECRET)
        yield folder, server.getsockname()[1]
