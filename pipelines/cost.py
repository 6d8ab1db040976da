"""The cost stage: what merging and calibration take, each repetition in a process of its own (table 3).

Counted is the stage's function alone: the process has imported everything before the clock starts, and its memory is
what it holds beyond what it held then.
"""

import multiprocessing
import shutil
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import psutil

from pipelines.config import CostConfig
from pipelines.stage import STAGES


class Repetition(TypedDict):
    """What one repetition took, see `measure_cost`."""

    seconds: float
    peak_memory_gb: float
    process_memory_gb: float
    device_memory_gb: float | None


def measure_cost(config: CostConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Runs the stage `config.repeats` times on the inputs that it had.

    Returns:
        repeats: of each repetition seconds, peak_memory_gb (resident, beyond the loaded interpreter), process_memory_gb
        (with it) and device_memory_gb (None without a GPU); seconds and peak_memory_gb: their medians.
    """
    # Spawned, so that nothing of this process counts; a new process each, so that no repetition is warm.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        repeats = [
            pool.submit(_repeat, config.stage, config.config, inputs, out / "trial").result()
            for _ in range(config.repeats)
        ]
    return {
        "repeats": repeats,
        "seconds": statistics.median(one["seconds"] for one in repeats),
        "peak_memory_gb": statistics.median(one["peak_memory_gb"] for one in repeats),
    }


def _repeat(stage: str, config: Any, inputs: dict[str, Path], out: Path) -> Repetition:
    import resource

    import torch

    function = STAGES[stage].load()
    out.mkdir(parents=True)
    before = psutil.Process().memory_info().rss
    on_device = torch.cuda.is_available()
    began = time.perf_counter()
    function(config, inputs, out)
    if on_device:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for left in (out, out.with_name(f"{out.name}.layers")):
        shutil.rmtree(left, ignore_errors=True)
    return {
        "seconds": seconds,
        "peak_memory_gb": max(peak - before, 0) / 1e9,
        "process_memory_gb": peak / 1e9,
        "device_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_device else None,
    }
