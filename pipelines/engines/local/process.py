"""A worker process as the engine holds it: orders go in, replies come out, and it may die."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from pipelines.engines.command import ending, environment

_GRACE_SECONDS = 10  # between SIGTERM and SIGKILL


class Worker:
    """One process of pipelines.engines.local.worker, in a session of its own.

    Attributes: replies (file descriptor, readable when it has replied or died); gpus (the devices that it sees).
    """

    def __init__(self, gpus: tuple[int, ...], output: Path):
        self.gpus = gpus
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        self.replies, write = os.pipe()
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipelines.engines.local.worker", str(write), str(os.getpid())],
                stdin=subprocess.PIPE, stdout=file, stderr=file, pass_fds=[write], start_new_session=True,
                env=environment(1, os.environ) | visible,
            )  # fmt: skip
        os.close(write)

    def give(self, config: Path, key: str, result: Path, log: Path, cores: list[int]) -> None:
        """Gives it a unit of work; a worker that is dead already shows it by `replied`."""
        order = {"config": str(config), "key": key, "result": str(result), "log": str(log), "cores": cores}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def replied(self) -> bool:
        """Whether it has done what it was given; False: it died. Call it when `replies` is readable or it is `dead`."""
        return not self.dead and os.read(self.replies, 1) == b"."

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        return ending(self._process.wait())

    def stop(self) -> None:
        """Ends it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self.replies)
