"""A child process for what is not trusted: generated code, and answers that a computer algebra system must read.

Limits on CPU time, memory, file size and processes always hold, and what runs samples locks itself down besides
(`lockdown.py`). Isolation is the strongest the system has: bubblewrap (read-only file system, no network, own
processes), else `unshare` (no network, own processes where allowed), else neither.
"""

import contextlib
import functools
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

CHILDREN = Path(__file__).parent
_UNSHARE = (
    ("no network, own processes", ["--user", "--map-current-user", "--net", "--pid", "--mount-proc", "--kill-child"]),
    ("no network, own processes", ["--net", "--pid", "--mount-proc", "--kill-child"]),
    ("no network", ["--user", "--map-current-user", "--net"]),
    ("no network", ["--net"]),
)


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: wall time of the whole child; it and all it started are killed then.
        cpu_seconds: CPU time of each of its processes.
        memory_bytes: address space of each of its processes.
        file_bytes: size of any file it writes.
        processes: processes and threads it may add to those of its user (not enforced by the kernel for root).
    """

    seconds: float
    cpu_seconds: int = 600
    memory_bytes: int = 16 * 2**30
    file_bytes: int = 256 * 2**20
    processes: int = 128


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit status (None when it was killed for its time), and the end of what it wrote."""

    status: int | None
    log: str


def run(
    script: str, arguments: Sequence[str], workdir: Path, limits: Limits, environment: Mapping[str, str]
) -> Outcome:
    """Runs `sandbox/<script>` with this Python in `workdir`, the only directory it may write to."""
    command, isolation = _wrap([sys.executable, str(CHILDREN / script), *arguments], workdir)
    _announce(isolation)
    output = workdir / "log.txt"
    with output.open("wb") as file:
        child = subprocess.Popen(
            command,
            cwd=workdir,
            env=clean_environment(workdir, environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limiter(limits),
        )
        try:
            status: int | None = child.wait(timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill_group(child)
    return Outcome(status, output.read_bytes()[-4000:].decode(errors="replace"))


def clean_environment(workdir: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the caller's environment but where programs and the locale are: no tokens, no keys, no proxies."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if key in os.environ}
    scratch = workdir / "tmp"
    scratch.mkdir(exist_ok=True)
    return {
        **kept,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **extra,
    }


def limiter(limits: Limits) -> Callable[[], None]:
    """What a child calls before it becomes the program, to limit itself and all it starts.

    Everything is worked out here, in the parent: between fork and exec a child of a threaded process must do little.
    """
    wanted = (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, _threads_of_user() + limits.processes),
    )
    allowed = []
    for kind, value in wanted:
        hard = resource.getrlimit(kind)[1]
        allowed.append((kind, value if hard == resource.RLIM_INFINITY else min(value, hard)))

    def limit() -> None:
        for kind, value in allowed:
            resource.setrlimit(kind, (value, value))

    return limit


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends the child's session, whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@functools.cache
def isolation() -> tuple[str, tuple[str, ...]]:
    """The strongest isolation that works here: a sentence for the log, and the command that gives it.

    HARC_SANDBOX=bubblewrap|unshare|limits asks for one; asking for one that does not work here is an error.
    """
    wanted = os.environ.get("HARC_SANDBOX", "")
    if wanted not in ("", "bubblewrap", "unshare", "limits"):
        raise ValueError(f"HARC_SANDBOX={wanted}: choose bubblewrap, unshare or limits")
    if wanted in ("", "bubblewrap") and _works(_bubblewrap(Path("/"), probe=True)):
        return "bubblewrap (read-only file system, no network, own processes)", ("bwrap",)
    if wanted in ("", "unshare") and shutil.which("unshare"):
        for what, options in _UNSHARE:
            command = ["unshare", *options, "--fork"]
            if _works(command):
                return f"unshare ({what})", tuple(command)
    if wanted in ("bubblewrap", "unshare"):
        raise ValueError(f"HARC_SANDBOX={wanted} does not work on this system")
    return "none but the kernel's own lockdown of the samples (install bubblewrap for more)", ()


def _wrap(command: list[str], workdir: Path) -> tuple[list[str], str]:
    what, prefix = isolation()
    if prefix == ("bwrap",):
        return [*_bubblewrap(workdir), *command], what
    return [*prefix, *command], what


def _bubblewrap(workdir: Path, probe: bool = False) -> list[str]:
    private = ["--dev", "/dev", "--proc", "/proc"]
    writable = [] if probe else ["--bind", str(workdir), str(workdir), "--chdir", str(workdir)]
    rights = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    return ["bwrap", "--ro-bind", "/", "/", *private, *writable, *rights]


def _works(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        done = subprocess.run([*command, "true"], capture_output=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@functools.cache
def _announce(isolation: str) -> None:
    log.info(
        "generated code runs in a child process with CPU, memory, file and process limits; isolation: %s", isolation
    )


def _threads_of_user() -> int:
    """Threads that this user has now: RLIMIT_NPROC counts them all."""
    user, count = os.getuid(), 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        count += (process.info["num_threads"] or 1) if uids and uids.real == user else 0
    return count
