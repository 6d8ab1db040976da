"""What a process has held in memory."""

import sys

import psutil


def peak_memory_gb() -> float:
    """The most memory this process has held, resident, in gigabytes (1e9 bytes)."""
    info = psutil.Process().memory_info()
    try:
        import resource
    except ImportError:  # not a POSIX system
        return getattr(info, "peak_wset", info.rss) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return max(info.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9
