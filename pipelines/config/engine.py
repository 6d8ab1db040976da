"""The group `engine`: what makes the stages of a run, and where."""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class StageEngineConfig:
    """What every engine has: what stages may use of a machine."""

    kind: str = MISSING
    """local: processes of this machine; ray: tasks of a Ray cluster."""

    cores: int | None = None
    """CPU cores (null: all that this process may use; of a cluster, all that its nodes have)."""

    gpus: int | None = None
    """GPUs (null: all that this process sees; of a cluster, all that its nodes have)."""

    memory_gb: float | None = None
    """Host memory, gigabytes (null: all that there is)."""

    gpu_memory_gb: float | None = None
    """Memory of a GPU, gigabytes (null: what the smallest here has); with plan=true also of GPUs that are elsewhere."""


@dataclass
class LocalEngineConfig(StageEngineConfig):
    """Processes of this machine, within what is given to them here."""

    kind: str = "local"
    """local."""


@dataclass
class RayEngineConfig(StageEngineConfig):
    """Tasks of Ray, on a cluster that runs or on one that is started here and ends with the run."""

    kind: str = "ray"
    """ray."""

    address: str | None = None
    """Of a running cluster: auto (the one of this machine), or ADDRESS:PORT of its head (null: one is started here)."""
