"""How long a stage will take, and where the figure comes from. The one place where time is estimated.

In this order: the stage itself, if it is there; like stages in the outputs folder (same stage, same settings but for
seeds and names); the stage's own account of its work (Stage.work), at the rate that a rehearsal measured
(pipelines/rehearsal/rates.py), or else at typical rates.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.graph.graph import Seconds
from pipelines.runner.estimate import ModelSize, Work
from pipelines.runner.manifest import MANIFEST
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node

_NAMES = ("seed", "sources", "base", "model", "routers", "source", "plugin_digest", "judges")

MEASURED, REHEARSED, ESTIMATED = "measured", "rehearsed", "estimated"


@dataclass(frozen=True)
class StageRate:
    """One kind of stage as a rehearsal measured it: medians over those that were made, of memory the least."""

    kind: str
    """The stage, and the method of a merge."""

    made: int
    """How many were made."""

    overhead: float
    """Seconds beside the work."""

    work: float
    """Seconds of the work."""

    typical: float
    """Seconds that the same work takes at typical rates."""

    planned_seconds: float
    """What was planned for a stage, overhead included."""

    memory_gb: float
    """Resident memory at the peak; where a worker process made other stages before, what it kept of them too."""

    planned_memory_gb: float
    """What was planned."""

    disk_gb: float
    """What it left."""

    planned_disk_gb: float
    """What was planned."""


@dataclass(frozen=True)
class Rates:
    """What a core, or a GPU, does in a second. The defaults are those of `CORE` and `GPU`."""

    flops: float
    """Floating-point operations of training and of forward passes."""

    generated: float
    """Floating-point operations of generation, a wide batch token by token."""

    gigabytes: float
    """Read and written."""

    start: float
    """Seconds before the work of a stage begins: models loaded, an engine opened."""


# A core of a server of 2023: what the tiny world's stages did on one. A GPU of 80 GB (H100): 20 % of its dense bf16
# peak in training, and vLLM's some 10,000 tokens/s of a model with 1.3 B active parameters.
CORE = Rates(flops=5e10, generated=5e9, gigabytes=0.5, start=3)
GPU = Rates(flops=2e14, generated=3e13, gigabytes=1, start=60)


class Clock:
    """Estimates of time for one outputs folder on one machine.

    core, gpu: its rates; rehearsed: kind of stage -> what a rehearsal on such a machine took.
    """

    def __init__(
        self,
        outputs: Path,
        machine: Resources,
        core: Rates = CORE,
        gpu: Rates = GPU,
        rehearsed: Mapping[str, StageRate] | None = None,
    ):
        self.rehearsed = rehearsed or {}
        self.outputs = outputs
        self.machine = machine
        self.core, self.gpu = core, gpu
        self._made: dict[str, list[dict[str, Any]]] = {}

    def seconds(self, node: Node, size: ModelSize, resources: Resources) -> Seconds:
        """The wall time that a node is expected to take, or took."""
        like = self._like(node)
        if like:
            return Seconds(statistics.median(like), MEASURED)
        rate = self.rehearsed.get(kind_of(node))
        if rate is not None and rate.typical > 0:
            mapping = self.mapping(resources.on(self.machine))
            work = self.work_seconds(node, size, resources) * rate.work / rate.typical
            return Seconds(rate.overhead + work + mapping, REHEARSED)
        return Seconds(self.estimated(node, size, resources), ESTIMATED)

    def estimated(self, node: Node, size: ModelSize, resources: Resources) -> float:
        """Seconds from the node's own account of its work, at typical rates."""
        using = resources.on(self.machine)
        start = (self.gpu if using.gpus else self.core).start
        return start + self.work_seconds(node, size, resources) + self.mapping(using)

    def mapping(self, using: Resources) -> float:
        """Seconds of reading and writing what a stage keeps in memory-mapped files. using: what it takes."""
        return using.mapped_gb * using.passes / self.core.gigabytes

    def work_seconds(self, node: Node, size: ModelSize, resources: Resources) -> float:
        """Seconds of a node's work alone at typical rates: nothing opened, nothing mapped."""
        using = resources.on(self.machine)
        work = node.spec.work(node, size) if node.spec.work else Work()
        rates, many = (self.gpu, using.gpus) if using.gpus else (self.core, using.cores)
        computed = work.flops / rates.flops + work.generated / rates.generated
        return work.seconds + computed / many + work.gigabytes / rates.gigabytes

    def _like(self, node: Node) -> list[float]:
        """Seconds that it took, or that stages did whose settings differ in seeds and names alone."""
        if node.stage not in self._made:
            files = sorted(self.outputs.glob(f"{node.stage}/*/{MANIFEST}"))
            self._made[node.stage] = [read for read in map(_read, files) if read]
        made = self._made[node.stage]
        own = [one["seconds"] for one in made if one["key"] == node.key]
        like = _likeness(node.stage, node.label, dataclasses.asdict(node.config))
        return own or [one["seconds"] for one in made if one["likeness"] == like]


def kind_of(node: Node) -> str:
    """What stages have in common whose work is of one kind: the stage, and the method of a merge."""
    method = getattr(node.config, "method", None)
    return f"{node.stage} {method}" if method else node.stage


def device_name(machine: Resources) -> str:
    """What computes on a machine: cpu, or gpu."""
    return "gpu" if machine.gpus else "cpu"


def _likeness(stage: str, label: str, config: Any) -> str:
    """What stages have in common that take about as long: all settings but seeds and which models they are given."""
    scale = label.partition("-")[0]
    return json.dumps([stage, scale, _without_names(config)], sort_keys=True, default=str)


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_names(one) for key, one in value.items() if key not in _NAMES}
    return [_without_names(one) for one in value] if isinstance(value, list | tuple) else value


def _read(file: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        like = _likeness(manifest["stage"], manifest["label"], manifest["config"])
        return {"key": manifest["key"], "seconds": manifest["seconds"], "likeness": like}
    except (OSError, ValueError, KeyError):
        return None
