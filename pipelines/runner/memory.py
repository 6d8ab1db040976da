"""Peak memory of a stage: this process's resident memory and what its children have to themselves, in gigabytes."""

import threading
from pathlib import Path

import psutil

INTERVAL_SECONDS = 0.1


class PeakMemory:
    """Context that samples resident memory in a thread; `peak_gb` holds the result."""

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Looks once, now."""
        process = psutil.Process()
        total = process.memory_info().rss
        for child in process.children(recursive=True):
            try:
                total += _own_bytes(child)
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self.peak_gb = max(self.peak_gb, total / 1e9)


def _own_bytes(child: psutil.Process) -> int:
    """Memory that a child does not share: one just forked shares all of its parent's, which is counted already."""
    try:
        lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
    except FileNotFoundError:  # not Linux, or gone
        return int(child.memory_info().rss)
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
