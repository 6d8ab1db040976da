"""The group `engine`: what makes the stages of a run, and where."""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class StageEngineConfig:
    """What every engine has."""

    kind: str = MISSING
    """local: processes of this machine."""


@dataclass
class LocalEngineConfig(StageEngineConfig):
    """Processes of this machine, within what is given to them here."""

    kind: str = "local"
    """local."""

    cores: int | None = None
    """CPU cores (null: all that this process may use)."""

    gpus: int | None = None
    """GPUs (null: all that this process sees)."""

    memory_gb: float | None = None
    """Host memory, gigabytes (null: all that there is)."""

    gpu_memory_gb: float | None = None
    """Memory of a GPU, gigabytes (null: what the smallest has); with plan=true also of GPUs that are elsewhere."""
