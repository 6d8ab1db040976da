"""What a process that makes one stage after another does to itself: where it prints, on how many threads it runs."""

import os
import sys
from pathlib import Path


def with_output_in(path: Path) -> None:
    """From now on, what this process and its children print is added to the file."""
    for descriptor in (1, 2):
        point(descriptor, str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def point(descriptor: int, path: str, flags: int) -> None:
    """Opens a file under a descriptor that is in use."""
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, descriptor)
    os.close(opened)


def use_threads(count: int) -> None:
    """As many threads for what is computed next, here and in children."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
