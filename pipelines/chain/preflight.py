"""What would make a run fail late, found in its first seconds: each stage's own checks, disk, memory."""

import shutil

from pipelines.graph.graph import Graph
from pipelines.graph.schedule import peak_disk_gb
from pipelines.runner.resources import Resources


def check(graph: Graph, machine: Resources) -> dict[str, Exception]:
    """Checks the missing stages of a graph before the first of them is made.

    machine: what stages are made on.

    Returns:
        Of each stage that would fail its key and the reason: whatever its own preflight raises, such as an ImportError
        for a missing package; a MemoryError where the machine has too little memory for it.
    """
    failing: dict[str, Exception] = {}
    for task in graph.missing:
        if lacking := task.resources.lacking(machine):
            remedy = f"; {task.node.spec.remedy}" if task.node.spec.remedy else ""
            failing[task.key] = MemoryError(f"stage {task.stage} of {task.label} {lacking}{remedy}")
            continue
        try:
            if task.node.spec.preflight is not None:
                task.node.spec.preflight(task.node)
        except Exception as error:
            failing[task.key] = error
    return failing


def lacking_disk(graph: Graph, machine: Resources) -> str | None:
    """What to say where outputs go to a disk too full for the missing stages."""
    disk = peak_disk_gb(graph, machine)
    there = next(folder for folder in (graph.outputs, *graph.outputs.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if disk <= free:
        return None
    return f"{graph.outputs}: the missing stages need about {disk:.1f} GB of disk, {free:.1f} GB are free"
