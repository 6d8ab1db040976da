"""The cost stage: what merging and calibration take, each repetition in a process of its own (table 3).

Counted is the stage's function alone: the process has imported everything before the clock starts, and its memory is
what it holds beyond what it held then.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

from omegaconf import MISSING

from pipelines.runner.estimate import Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages import find_stage


@dataclass
class CostConfig:
    """Another stage's function, run several times."""

    stage: str = MISSING
    """The stage that is measured."""

    config: Any = None
    """Its configuration."""

    repeats: int = 3
    """Repetitions, 1 or more, each in a process of its own."""

    device: str = "cpu"
    """Where it runs, so that costs of different devices never meet: cpu or cuda."""


class Repetition(TypedDict):
    """What one repetition took, see `cost`."""

    seconds: float
    peak_memory_gb: float
    process_memory_gb: float
    device_memory_gb: float | None


def cost(config: CostConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Runs the stage `config.repeats` times on the inputs that it had.

    Returns:
        repeats: of each repetition seconds, peak_memory_gb (resident, beyond the loaded interpreter), process_memory_gb
        (with it) and device_memory_gb (None without a GPU); seconds and peak_memory_gb: their medians.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

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
    import shutil
    import time

    import psutil
    import torch

    from harc.memory import peak_memory_gb

    # What the stages import when they are called, so that importing is neither in the time nor in the memory.
    for module in ("datasets", "transformers", "harc.merging.driver", "harc.calibration.driver"):
        import_module(module)
    function = find_stage(stage).function
    out.mkdir(parents=True)
    before = psutil.Process().memory_info().rss / 1e9
    on_device = torch.cuda.is_available()
    began = time.perf_counter()
    function(config, inputs, out)
    if on_device:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = peak_memory_gb()
    for left in (out, out.with_name(f"{out.name}.layers")):
        shutil.rmtree(left, ignore_errors=True)
    return {
        "seconds": seconds,
        "peak_memory_gb": max(peak - before, 0),
        "process_memory_gb": peak,
        "device_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_device else None,
    }


def needs(node: Node, model: ModelSize) -> Estimate:
    """What the measured stage needs."""
    measured = _measured(node)
    return measured.spec.estimate(measured, model)


def resources(node: Node, model: ModelSize) -> Resources:
    """Those of the measured stage, with nothing beside it."""
    measured = _measured(node)
    own = measured.spec.resources
    need = own(measured, model) if own else Resources(memory_gb=needs(node, model).memory_gb)
    return dataclasses.replace(need, exclusive=True)


def work(node: Node, model: ModelSize) -> Work:
    """The measured stage's, each time; every process imports everything anew."""
    measured = _measured(node)
    once = measured.spec.work(measured, model) if measured.spec.work else Work()
    times = node.config.repeats
    return Work(once.flops * times, once.generated * times, once.gigabytes * times, times * (once.seconds + 10))


def _measured(node: Node) -> Node:
    return Node(find_stage(node.config.stage), node.label, node.config.config, node.inputs)


SPEC = Stage("cost", CostConfig, cost, needs, resources, work, version=2)
