"""What all child processes share: a clean environment, bounds, an end together with the run."""

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from eval.sandbox.lockdown import die_with_parent

__all__ = ["ROOT", "clean_environment", "die_with_parent", "kill_group", "last_words", "limiter", "said"]

ROOT = Path(__file__).parents[2]  # what holds the package `eval`
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_NOWHERE = "/nonexistent"


def clean_environment() -> dict[str, str]:
    """Nothing of the caller's environment but where programs and the locale are: no tokens, no keys, no proxies.

    There is no home and no folder for temporary files: children write none.
    """
    return {
        **{key: os.environ[key] for key in _KEPT if key in os.environ},
        "HOME": _NOWHERE,
        "TMPDIR": _NOWHERE,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def limiter(bounds: Mapping[str, int]) -> Callable[[], None]:
    """What a child calls before it becomes the program, to limit itself and all it starts and to end with its parent.

    Everything is worked out here, in the parent: between fork and exec a child of a threaded process must do little.

    Args:
        bounds: by the name of a resource limit, as {"AS": bytes, "CPU": seconds}.
    """
    allowed = []
    for name, value in bounds.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        allowed.append((kind, value if hard == resource.RLIM_INFINITY else min(value, hard)))

    def limit() -> None:
        die_with_parent()
        for kind, value in allowed:
            resource.setrlimit(kind, (value, value))

    return limit


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends the child's session, whatever it has started, and closes the pipes to it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def said() -> IO[bytes]:
    """A file for what a child writes on its standard error; it has no name, so that nothing of it is left behind."""
    return tempfile.TemporaryFile()


def last_words(file: IO[bytes]) -> str:
    """The end of what a child wrote."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    return file.read().decode(errors="replace").strip()
