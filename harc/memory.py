"""Memory: what a process has held, what there is of it here, and how much of that one piece of work may take."""

import math
import sys
from pathlib import Path

import psutil

SHARE = 0.8  # of the memory that is available, where no budget is given

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def peak_memory_gb() -> float:
    """The most memory this process has held, resident, in gigabytes (1e9 bytes)."""
    info = psutil.Process().memory_info()
    try:
        import resource
    except ImportError:  # not a POSIX system
        return getattr(info, "peak_wset", info.rss) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return max(info.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9


def installed_memory_gb(groups: Path = _GROUPS, own: Path = _OWN_GROUP) -> float:
    """Gigabytes that this process may use at most: the machine's memory, or its control groups' limit where lower.

    Args:
        groups: where control groups are mounted.
        own: the file that says which of them this process is in.
    """
    limits = [limit for limit, _ in _limits(groups, own)]
    return min([psutil.virtual_memory().total, *limits]) / 1e9


def available_memory_gb(groups: Path = _GROUPS, own: Path = _OWN_GROUP) -> float:
    """Gigabytes that can be had now without swapping: of the machine's, and of its control groups' limits.

    Arguments are those of `installed_memory_gb`.
    """
    left = [limit - used for limit, used in _limits(groups, own)]
    return max(0.0, min([psutil.virtual_memory().available, *left]) / 1e9)


def budget_gb(given: float | None) -> tuple[float, str]:
    """The memory that one piece of work may take, in gigabytes, and in words where that figure comes from.

    given: `memory_budget_gb`; None for `SHARE` of what is available now, infinity for no limit.
    """
    if given is not None:
        return given, f"memory_budget_gb is {given:g}"
    available = available_memory_gb()
    share = f"{100 * SHARE:.0f} % of the {available:.3g} GB available"
    return SHARE * available, f"memory_budget_gb is {SHARE * available:.3g} ({share})"


def _limits(groups: Path, own: Path) -> list[tuple[float, float]]:
    """Of each control group with a limit that this process is in: limit and use, in bytes; files' cache is no use."""
    if not own.is_file():  # not Linux
        return []
    found = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / names[0]).is_file():
                found.append(_limit(folder, *names))
            if folder == root:
                break
    return [(limit, used) for limit, used in found if math.isfinite(limit)]


def _limit(folder: Path, limit: str, used: str, cached: str) -> tuple[float, float]:
    said = (folder / limit).read_text().strip()
    most = math.inf if said == "max" else float(said)
    counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines() if line.count(" ") == 1)
    return most, float((folder / used).read_text()) - float(counts.get(cached, 0))
