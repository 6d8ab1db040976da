"""The merging methods, one typed group option each, and the merge stage."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class MergeConfig:
    """A merging method; each has a subclass with its own settings."""

    method: str = MISSING
    label: str = MISSING


@dataclass
class NoMergeConfig(MergeConfig):
    """The source models themselves, each on its own domain: the upper bound."""

    method: str = "individual"


@dataclass
class BaseModelConfig(MergeConfig):
    """The model the sources were tuned from, unmerged: the lower bound."""

    method: str = "base"


@dataclass
class AverageConfig(MergeConfig):
    """Mean of the sources, weighted by domain (null: equal)."""

    method: str = "average"
    weights: dict[str, float] | None = None


@dataclass
class TaskArithmeticConfig(MergeConfig):
    """base + scale · Σ weight · task vector."""

    method: str = "task_arithmetic"
    weights: dict[str, float] | None = None
    scale: float = 1.0


@dataclass
class TiesConfig(MergeConfig):
    """Trim to `density`, elect sign, disjoint merge."""

    method: str = "ties"
    weights: dict[str, float] | None = None
    density: float = 0.2


@dataclass
class DareConfig(MergeConfig):
    """Random drop to `density` and rescale, then sign election (DARE-TIES)."""

    method: str = "dare"
    weights: dict[str, float] | None = None
    density: float = 0.4
    seed: int = 0


@dataclass
class DellaConfig(MergeConfig):
    """DELLA: like DARE, with larger entries likelier to be kept, by `epsilon` around `density`."""

    method: str = "della"
    weights: dict[str, float] | None = None
    density: float = 0.4
    epsilon: float = 0.15
    seed: int = 0


@dataclass
class SceConfig(MergeConfig):
    """SCE: select the entries that vary most, weigh the sources by their energy, erase the minority sign."""

    method: str = "sce"
    density: float = 0.1


@dataclass
class WudiConfig(MergeConfig):
    """Per linear layer, Adam on the interference with every task vector."""

    method: str = "wudi"
    lr: float = 2e-5
    steps: int = 300


@dataclass
class FisherConfig(MergeConfig):
    """Mean weighted by each source's diagonal Fisher information."""

    method: str = "fisher"
    weights: dict[str, float] | None = None


@dataclass
class RegMeanConfig(MergeConfig):
    """Per linear layer, least squares from the Gram matrices of its inputs; off-diagonals times `damping`."""

    method: str = "regmean"
    damping: float = 0.9


@dataclass
class MergeStageConfig:
    """The merge stage: method and settings; base and sources only where they are not made by a stage."""

    method: str = MISSING
    settings: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    sources: dict[str, str | None] = field(default_factory=dict)
    max_length: int = 4096
    dtype: str = "bfloat16"
