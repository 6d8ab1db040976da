"""The command that does a unit of work in a process of its own, and the environment that it needs."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from pipelines.places import ROOT


def command(config: Path, key: str, result: Path) -> list[str]:
    """The command that does a unit of work in a process of its own, in this working directory.

    -P: nothing that lies in that directory is imported in the place of a package.
    """
    made = [str(config.resolve()), key, "--result", str(result.resolve())]
    return [sys.executable, "-P", "-m", "pipelines.engines.worker", *made]


def environment(cores: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that makes stages: where the code is, and the threads of its libraries."""
    path = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
    return {**inherited, **threads, "PYTHONPATH": ":".join(path), "TOKENIZERS_PARALLELISM": "false"}


def ending(status: int) -> str:
    """How a process ended, in words. status: as subprocess gives it, negative for a signal."""
    if status == -signal.SIGKILL:
        return "was killed (signal 9: often the system, out of memory)"
    return f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
