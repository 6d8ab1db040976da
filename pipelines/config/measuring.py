"""Sampling calibration data, calibrating, diagnosing, evaluating: their groups and stages."""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.config.data import DataSource


@dataclass
class SampleBudgetConfig:
    """How long a calibration response may be, and how many must be left (fewer: the stage fails)."""

    max_new_tokens: int = 1024
    min_kept: int = 100
    seed: int = 0


@dataclass
class SampleConfig(SampleBudgetConfig):
    """The sample stage of one domain: calibration prompts, answered greedily by the domain's source model."""

    source: str | None = None
    data: DataSource = MISSING
    composition: str = "srccrt"
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass
class CalibrateConfig:
    """A calibration of the merged routers; `none` leaves them as merged."""

    method: str = MISSING


@dataclass
class HarcConfig(CalibrateConfig):
    """HARC (METHOD sections 3 to 5).

    alpha: a number from 0 to 1, or `auto`: chosen by held-out routing KL. layers: `all`, a number: that many last MoE
    layers, or a share of them, such as 25%. memory_budget_gb: of the host; what does not fit is memory-mapped.
    """

    method: str = "harc"
    alpha: Any = 0.9
    beta: float | None = None
    hessian: str = "full"
    objective: str = "quadratic"
    layers: Any = "all"
    tol: float = 1e-6
    max_iter: int = 1000
    preconditioner: str = "auto"
    memory_budget_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuses values out of range when the configuration is composed."""
        if self.alpha != "auto" and not (isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1):
            raise ValueError(f"calibrate.alpha={self.alpha}: expected a number from 0 to 1, or auto")
        share = re.fullmatch(r"(\d+(?:\.\d+)?)%", str(self.layers))
        if not (
            self.layers == "all"
            or (isinstance(self.layers, int) and self.layers >= 1)
            or (share and 0 < float(share[1]) <= 100)
        ):
            raise ValueError(
                f"calibrate.layers={self.layers}: expected all, how many of the last MoE layers, or a share such as 50%"
            )
        for key, valid in {
            "hessian": ("full", "diagonal", "identity"),
            "objective": ("quadratic", "kl"),
        }.items():
            if getattr(self, key) not in valid:
                raise ValueError(f"calibrate.{key}={getattr(self, key)}: expected one of {', '.join(valid)}")


@dataclass
class CalibrateStageConfig:
    """The calibrate stage."""

    harc: HarcConfig = field(default_factory=HarcConfig)
    fraction: float = 1.0
    seed: int = 0
    max_length: int = 4096
    dtype: str = "bfloat16"
    sources: dict[str, str | None] = field(default_factory=dict)


@dataclass
class DiagnoseConfig:
    """The diagnose stage: routing of a model against its sources, on held-out text or on calibration text.

    heldout: domain -> text; empty when the text is the calibration data, a stage's.
    """

    model: str | None = None
    sources: dict[str, str | None] = field(default_factory=dict)
    heldout: dict[str, DataSource] = field(default_factory=dict)
    max_length: int = 4096
    dtype: str = "bfloat16"


@dataclass
class SwapConfig:
    """The swap stage: a model with another model's routers."""

    model: str | None = None
    routers: str | None = None


@dataclass
class CostConfig:
    """The cost stage: another stage's function run `repeats` times, each in a process of its own.

    stage, config: of the stage that is measured. device: where it ran, so that costs of different devices never meet.
    """

    stage: str = MISSING
    config: Any = None
    repeats: int = 3
    device: str = "cpu"


@dataclass
class EvaluateConfig:
    """How accuracy is measured.

    engine: vllm or transformers. limit: problems a task (null: all). tasks: columns to measure (null: all; [] none).
    split: test, or validation, problems to choose settings on.
    """

    samples: int = 16
    temperature: float = 0.1
    seed: int = 0
    limit: int | None = None
    engine: str = "vllm"
    tasks: list[str] | None = None
    split: str = "test"

    def __post_init__(self) -> None:
        """Refuses values that nothing could be measured with when the configuration is composed."""
        for key, least in (("samples", 1), ("limit", 1), ("temperature", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"evaluate.{key}={value}: expected {least} or more")
        if self.split not in ("test", "validation"):
            raise ValueError(f"evaluate.split={self.split}: expected test or validation")


@dataclass
class EvaluateStageConfig:
    """The evaluate stage: one model, some tasks."""

    model: str | None = None
    tasks: dict[str, str | None] = MISSING
    samples: int = 16
    temperature: float = 0.1
    seed: int = 0
    limit: int | None = None
    max_new_tokens: int | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
