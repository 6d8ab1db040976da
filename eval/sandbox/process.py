"""The trusted end of a locked interpreter: starts it, gives it jobs, reads what comes back within bounds."""

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from types import TracebackType

from eval.sandbox import child
from eval.sandbox.isolation import Isolation, readable_paths
from eval.sandbox.template import REFERENCE, SAMPLE

__all__ = ["REFERENCE", "SAMPLE", "Run", "SandboxError", "Template"]

START_SECONDS = 120.0  # a cold disk holds NumPy's import up
END_SECONDS = 30.0  # to kill a process that holds gigabytes
MOST_BYTES = 256 * 2**20  # that one job may send back
LONGEST_LINE = 64 * 2**20


class SandboxError(RuntimeError):
    """The sandbox does not start, or does not hold what it must; the message says what to do."""


class Stopped(Exception):
    """A job's process ended, took too long or sent too much; the message says which."""


class TooMuch(Stopped):
    """A job's process sent more than it may, or had not the memory to."""


class Template:
    """A running locked interpreter, for one job at a time; it starts again by itself if it is lost.

    Args:
        isolation: how it is started.
        strict: whether a job is refused where its system calls cannot be limited.
    """

    def __init__(self, isolation: Isolation, strict: bool = True) -> None:
        self._isolation, self._strict = isolation, strict
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.trouble = ""  # what of the lockdown is missing here; the probe says whether that matters

    def start(self, kind: bytes, data: bytes) -> "Run":
        """Runs a job (`eval.sandbox.job.encode`) in a process of its own.

        Raises:
            SandboxError: the interpreter does not start.
        """
        for attempt in range(2):
            if self._control is None:
                self._open()
            assert self._control is not None
            job_end, job_write = os.pipe()
            out_read, out_end = os.pipe()
            try:
                descriptors = array.array("i", [job_end, out_end])
                self._control.sendmsg([kind], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
                return Run(self, data, job_write, out_read)
            except OSError as error:  # the interpreter was lost since its last job
                os.close(job_write)
                os.close(out_read)
                self.close()
                if attempt:
                    raise SandboxError(f"the locked interpreter ends as soon as it is used: {error}") from error
            finally:
                os.close(job_end)
                os.close(out_end)
        raise AssertionError("unreachable")

    def end(self) -> int | None:
        """Kills the process of the job; its wait status, or None where the interpreter was lost with it."""
        assert self._control is not None
        try:
            self._control.sendall(b"e")
            status = self._control.recv(4, socket.MSG_WAITALL)
        except OSError:
            status = b""
        if len(status) == 4:
            return int.from_bytes(status, "little")
        self.close()
        return None

    def close(self) -> None:
        """Ends the interpreter and all it has started."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            child.kill_group(self._child)
            self._child = None

    def __enter__(self) -> "Template":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(START_SECONDS)
        manner = "strict" if self._strict else "lenient"
        arguments = [str(theirs.fileno()), json.dumps(readable_paths()), manner]
        command = [*self._isolation.command(), sys.executable, "-P", "-m", "eval.sandbox.template", *arguments]
        with theirs, child.said() as said:
            self._child = subprocess.Popen(
                command,
                cwd="/",
                env=child.clean_environment() | {"PYTHONPATH": str(child.ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=child.die_with_parent,
            )
            theirs.close()
            line = b""
            with contextlib.suppress(OSError):
                while not line.endswith(b"\n") and (piece := ours.recv(1)):
                    line += piece
            self._control = ours
            if not line.endswith(b"\n"):
                self.close()
                raise SandboxError(f"the locked interpreter does not start: {child.last_words(said)}")
        ours.settimeout(END_SECONDS)
        self.trouble = json.loads(line)


class Run:
    """A job under way: `line` gives what it sends, `close` ends it."""

    def __init__(self, template: Template, data: bytes, target: int, source: int) -> None:
        self._template = template
        self._unsent = memoryview(data)
        self._target: int | None = target
        self._source = source
        self._lines: deque[bytes] = deque()
        self._part: list[bytes] = []
        self._part_bytes = self._bytes = 0
        self._closed = False
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)
        os.set_blocking(target, False)
        self._poll.register(target, select.POLLOUT)

    def line(self, deadline: float) -> bytes:
        """The next line that the job sends.

        Args:
            deadline: by `time.monotonic`.

        Raises:
            Stopped: it ended, sent more than it may, or the deadline passed.
        """
        while not self._lines:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Stopped("took too long")
            for descriptor, _ in self._poll.poll(1000 * left):
                if descriptor == self._source:
                    self._receive()
                else:
                    self._send()
        return self._lines.popleft()

    def close(self) -> int | None:
        """Kills the job's process, whatever it is doing, and returns its wait status; see `Template.end`."""
        if self._closed:
            return None
        self._closed = True
        status = self._template.end()
        self._stop_sending()
        os.close(self._source)
        return status

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> None:
        piece = os.read(self._source, 2**20)
        if not piece:
            raise Stopped("ended before its last call returned")
        self._bytes += len(piece)
        *complete, rest = piece.split(b"\n")
        for line in complete:
            self._lines.append(b"".join([*self._part, line]))
            self._part, self._part_bytes = [], 0
        self._part.append(rest)
        self._part_bytes += len(rest)
        if self._bytes > MOST_BYTES or self._part_bytes > LONGEST_LINE:
            raise TooMuch(f"sent more than {MOST_BYTES} bytes, or a line of more than {LONGEST_LINE}")

    def _send(self) -> None:
        assert self._target is not None
        try:
            self._unsent = self._unsent[os.write(self._target, self._unsent[: 2**20]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._stop_sending()

    def _stop_sending(self) -> None:
        if self._target is not None:
            self._poll.unregister(self._target)
            os.close(self._target)
            self._target = None
