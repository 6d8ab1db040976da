"""A worker process of engine=local: makes one stage after another, so that imports are paid once.

`python -m pipelines.engines.local.worker REPLIES PARENT`: an order is a line of JSON on standard input, a reply one
byte on the file descriptor REPLIES when its result is written. What a stage prints goes to the file that the order
names. It ends with the process PARENT.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipelines.engines.inside import point, use_threads, with_output_in
from pipelines.engines.unit import make_unit
from pipelines.engines.worker import log_lines


def main() -> None:
    """Carries out orders until there are no more."""
    replies, parent = map(int, sys.argv[1:])
    end_with(parent)
    os.set_inheritable(replies, False)
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    point(0, os.devnull, os.O_RDONLY)  # a stage's own processes must not read orders
    log_lines()
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        with_output_in(Path(order["log"]))
        take_cores(order["cores"])
        make_unit(Path(order["config"]), order["key"], Path(order["result"]))
        os.write(replies, b".")


def take_cores(cores: list[int]) -> None:
    """Every thread of this process to these cores, and as many threads for what is computed next."""
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 (an id, not a path)
            os.sched_setaffinity(int(thread), cores)
    use_threads(len(cores))


def end_with(parent: int) -> None:
    """Linux: SIGTERM when the process that started this one ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before that
            sys.exit(1)


if __name__ == "__main__":
    main()
