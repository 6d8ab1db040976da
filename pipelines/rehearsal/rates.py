"""What the stages of a rehearsal took, beside what was planned: written once it ran, read by the plan of its scale.

Of a stage's time, what is not work (imports, models opened, an engine started) is the same at any scale. What is work
is held against the stage's own account of its operations, and the ratio scales the account of the real stage.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harc.files import write_synced
from pipelines.graph.graph import Graph, Task
from pipelines.graph.seconds import Clock, StageRate, device_name, kind_of
from pipelines.rehearsal.config import SUFFIX
from pipelines.runner.estimate import ModelSize
from pipelines.runner.manifest import MANIFEST
from pipelines.runner.resources import Resources
from pipelines.typed import from_json, to_json

_WORK = ("train_seconds", "work_seconds", "seconds")  # metrics that hold the seconds of a stage's own work


@dataclass(frozen=True)
class Rehearsal:
    """All stages of a rehearsal on one machine."""

    scale: str
    """The real scale."""

    device: str
    """cpu, or the GPU's name."""

    layers: int
    """Decoder layers of its model."""

    record_tokens: float
    """Tokens of a calibration record, measured."""

    rates: list[StageRate]
    """One a kind of stage, in the order of the graph."""


def file_of(outputs: Path, scale: str, device: str) -> Path:
    """Where the rehearsal of a scale on a device is kept."""
    return outputs / "rehearsals" / f"{scale}-{device.replace(' ', '_').replace('/', '_')}.json"


def read_rehearsal(outputs: Path, scale: str, machine: Resources) -> Rehearsal | None:
    """The rehearsal of a scale on a device like this machine's; None if there was none.

    Raises:
        ShapeError: a file of another form.
    """
    path = file_of(outputs, scale, device_name(machine))
    return from_json(Rehearsal, json.loads(path.read_text(encoding="utf-8")), str(path)) if path.is_file() else None


def note_rehearsal(graph: Graph, machine: Resources) -> Rehearsal | None:
    """Writes what the stages of a rehearsal took; None where none of it stands.

    Args:
        graph: of the rehearsal, as planned; its stages are made by now, or have failed.
        machine: what they were made on.
    """
    read = {key: _manifest(task, graph.outputs) for key, task in graph.tasks.items()}
    manifests = {key: manifest for key, manifest in read.items() if manifest is not None}
    if not manifests:
        return None
    scale = graph.config_of(next(iter(graph.tasks))).scale
    tokens = _record_tokens(graph, manifests) or scale.size.record_tokens
    size = ModelSize(dataclasses.replace(scale.size, record_tokens=tokens), scale.dtype)
    kinds: dict[str, list[str]] = {}
    for key in manifests:
        kinds.setdefault(kind_of(graph.tasks[key].node), []).append(key)
    clock = Clock(graph.outputs, machine)
    rates = [
        _rate(kind, [(graph.tasks[key], manifests[key]) for key in keys], clock, size) for kind, keys in kinds.items()
    ]
    name = scale.name.removesuffix(SUFFIX)
    rehearsal = Rehearsal(name, device_name(machine), scale.size.layers, tokens, rates)
    path = file_of(graph.outputs, name, rehearsal.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, json.dumps(to_json(rehearsal), indent=1))
    return rehearsal


def _manifest(task: Task, outputs: Path) -> dict[str, Any] | None:
    path = task.node.path(outputs) / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _record_tokens(graph: Graph, manifests: Mapping[str, dict[str, Any]]) -> float | None:
    """Tokens of a calibration record, from what a calibration read and its data hold."""
    for key, one in manifests.items():
        if graph.tasks[key].stage in ("calibrate", "repair"):
            data = [up.key for name, up in graph.tasks[key].node.inputs.items() if name.startswith("data_")]
            kept = sum(manifests[up]["metrics"]["kept"] for up in data if up in manifests)
            return sum(one["metrics"]["tokens"]) / kept if kept else None
    return None


def _rate(kind: str, made: list[tuple[Task, dict[str, Any]]], clock: Clock, size: ModelSize) -> StageRate:
    def median(values: list[float]) -> float:
        return float(statistics.median(values))

    work, overhead = [], []
    for _, manifest in made:
        own = next((manifest["metrics"][name] for name in _WORK if name in manifest["metrics"]), None)
        seconds = manifest["seconds"]
        work.append(min(seconds, own if own is not None else max(0.5 * seconds, seconds - clock.core.start)))
        overhead.append(seconds - work[-1])
    tasks = [task for task, _ in made]
    typical = [clock.work_seconds(task.node, size, task.resources) for task in tasks]
    return StageRate(
        kind,
        len(made),
        median(overhead),
        median(work),
        median(typical),
        median([clock.estimated(task.node, size, task.resources) for task in tasks]),
        min(manifest["peak_memory_gb"] for _, manifest in made),  # a worker keeps some of what it made before
        max(task.resources.on(clock.machine).anywhere_gb for task in tasks),
        median([sum(of["bytes"] for of in manifest["files"].values()) / 1e9 for _, manifest in made]),
        median([task.disk_gb for task in tasks]),
    )
