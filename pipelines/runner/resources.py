"""What a stage needs of a machine, and what a machine has."""

import dataclasses
from dataclasses import dataclass

from harc.memory import SHARE


@dataclass(frozen=True)
class Resources:
    """Cores, devices and memory: of a stage, what it needs; of a machine, what there is."""

    cores: int = 1
    """CPU cores, 1 or more: the threads that the stage computes with, whatever runs beside it."""

    gpus: int = 0
    """GPUs; on a machine without any, the stage computes on its cores."""

    memory_gb: float = 0.0
    """Host memory at the peak, in gigabytes."""

    gpu_memory_gb: float = 0.0
    """Memory at the peak on each of its GPUs, in gigabytes."""

    exclusive: bool = False
    """Whether the machine must do nothing else meanwhile: the stage measures time or memory."""

    nodes: int = 1
    """Machines alike, each with all of the above: that the stage spans, or that there are."""

    mappable_gb: float = 0.0
    """Of memory_gb, what goes to memory-mapped files where a stage gets less memory than it could use."""

    mapped_gb: float = 0.0
    """Of what a stage takes of a machine: gigabytes in memory-mapped files beside its memory."""

    passes: float = 0.0
    """How often what is mapped is read or written."""

    @property
    def words(self) -> str:
        """In words: `2 cores, 1 GPU`, with `4 × ` before it for several nodes."""
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        node = f"{cores}, {self.gpus} GPU{'s' * (self.gpus != 1)}" if self.gpus else cores
        return f"{self.nodes} × ({node})" if self.nodes > 1 else node

    @property
    def anywhere_gb(self) -> float:
        """Memory of host and GPUs together, gigabytes."""
        return self.memory_gb + self.gpus * self.gpu_memory_gb

    def on(self, machine: "Resources") -> "Resources":
        """What the stage takes of a machine: all cores where nothing may run beside, host memory in place of GPUs.

        What goes beyond the share of the host's memory that one stage gets (harc.memory.SHARE) is mapped, if it can be.
        """
        cores = machine.cores if self.exclusive else min(self.cores, machine.cores)
        taken = dataclasses.replace(
            self, cores=cores, gpus=min(self.gpus, machine.gpus), nodes=min(self.nodes, machine.nodes)
        )
        if not machine.gpus:
            memory = self.memory_gb + self.gpus * self.gpu_memory_gb
            taken = dataclasses.replace(taken, memory_gb=memory, gpu_memory_gb=0.0)
        mapped = min(taken.mappable_gb, max(0.0, taken.memory_gb - SHARE * machine.memory_gb))
        return dataclasses.replace(
            taken,
            memory_gb=taken.memory_gb - mapped,
            mappable_gb=taken.mappable_gb - mapped,
            mapped_gb=taken.mapped_gb + mapped,
        )

    def lacking(self, machine: "Resources") -> str | None:
        """What the machine has too little of for the stage, in words; None where it fits."""
        wanted = self.on(machine)
        if self.nodes > machine.nodes:
            return f"spans {self.nodes} nodes; here is {machine.nodes}"
        if machine.gpus and self.gpus > machine.gpus:
            return f"needs {self.gpus} GPUs; this machine has {machine.gpus}"
        if wanted.memory_gb > machine.memory_gb:
            return f"needs about {wanted.memory_gb:.0f} GB of memory; this machine has {machine.memory_gb:.0f} GB"
        if wanted.gpus and wanted.gpu_memory_gb > machine.gpu_memory_gb:
            return (
                f"needs about {wanted.gpu_memory_gb:.0f} GB on each of {wanted.gpus} GPUs; "
                f"here they have {machine.gpu_memory_gb:.0f} GB"
            )
        return None


def on_gpus(gpus: int, host_gb: float, device_gb: float) -> Resources:
    """One core, and GPUs that share device_gb between them."""
    return Resources(gpus=gpus, memory_gb=host_gb, gpu_memory_gb=device_gb / max(1, gpus))


@dataclass
class ResourcesConfig:
    """What a scale says of a stage's resources; null leaves what the stage itself says."""

    cores: int | None = None
    """CPU cores, 1 or more."""

    gpus: int | None = None
    """GPUs, 0 or more."""

    memory_gb: float | None = None
    """Host memory, gigabytes."""

    gpu_memory_gb: float | None = None
    """Memory on each GPU, gigabytes."""

    exclusive: bool | None = None
    """Whether the machine must do nothing else meanwhile."""

    def __post_init__(self) -> None:
        """Refuses amounts that no stage could run with."""
        for key, least in (("cores", 1), ("gpus", 0), ("memory_gb", 0), ("gpu_memory_gb", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"scale.resources.STAGE.{key}={value}: expected {least} or more")

    def over(self, own: Resources) -> Resources:
        """The stage's own resources with what is said here in their place."""
        said = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(own, **said)
