"""What would make a run fail late, found in its first seconds: packages, benchmark data, disk, memory."""

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import psutil

from eval import check_tasks
from pipelines.chain import Cell
from pipelines.data.read import local_path
from pipelines.estimates import estimate
from pipelines.stage import Node, is_made

log = logging.getLogger(__name__)


def check(cell: Cell, outputs: Path) -> None:
    """Checks the missing stages of a cell before the first of them runs.

    Raises:
        ImportError: a package that a missing stage needs isn't installed; says how to install it or do without.
        ValueError: a benchmark's data file is missing or malformed, or cannot be judged with what is here.
        OSError: too little disk where outputs go.
        MemoryError: more memory estimated than the machine has.
    """
    missing = [node for node in cell.nodes() if not is_made(node, outputs)]
    if not missing:
        return
    for node in missing:
        _check_engine(node)
        _check_benchmarks(node)
    outputs.mkdir(parents=True, exist_ok=True)
    size = cell.config.scale.size
    disk = sum(estimate(node, size, cell.config.scale.dtype).disk_gb for node in missing)
    free = shutil.disk_usage(outputs).free / 1e9
    if disk > free:
        raise OSError(f"{outputs}: the missing stages need about {disk:.1f} GB of disk, {free:.1f} GB are free")
    memory = max(missing, key=lambda node: estimate(node, size, cell.config.scale.dtype).memory_gb)
    needed = estimate(memory, size, cell.config.scale.dtype).memory_gb
    total = psutil.virtual_memory().total / 1e9
    if needed > total + _device_memory_gb():
        raise MemoryError(
            f"stage {memory.stage} of {memory.label} needs about {needed:.0f} GB of memory; this machine has "
            f"{total:.0f} GB and {_device_memory_gb():.0f} GB on devices"
        )


def _device_memory_gb() -> float:
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / 1e9


def _check_engine(node: Node) -> None:
    engine = getattr(node.config, "engine", None)
    generates = node.stage == "evaluate" or (node.stage == "sample" and node.config.composition in ("srccrt", "srcall"))
    if engine is not None and generates and engine.kind == "vllm" and find_spec("vllm") is None:
        raise ImportError(
            "vllm is not installed, and evaluate.engine=vllm needs it: `make setup` installs it (CPU build); on GPUs "
            "`pip install 'harc[gpu]'`; evaluate.engine=transformers does without, more slowly"
        )
    if generates and find_spec("evalplus") is None:
        raise ImportError("evalplus is not installed, and generated code is judged by it: run `make setup`")


def _check_benchmarks(node: Node) -> None:
    """Those that are measured on published data or files of one's own; the tiny world's are yet to be made."""
    if node.stage != "evaluate":
        return
    own = {task: data for task, data in node.config.tasks.items() if not (data or "").startswith("world:")}
    if own:
        check_tasks({task: local_path(data, None) if data else None for task, data in own.items()})
