"""The scale, the tracker, the experiment, and the root: everything one cell is composed of."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.config.data import CalibrationDataConfig, DomainConfig, WorldConfig
from pipelines.config.measuring import CalibrateConfig, EvaluateConfig, SampleBudgetConfig
from pipelines.config.merging import MergeConfig
from pipelines.config.training import LaunchConfig, PretrainConfig, TrainConfig


@dataclass
class SizeConfig:
    """What the plan's estimates of memory and disk are made from: parameter counts and shapes of the base model."""

    parameters: float = MISSING
    layers: int = MISSING
    hidden: int = MISSING
    experts: int = MISSING


@dataclass
class ScaleConfig:
    """A world to run in: base model, data and budgets."""

    name: str = MISSING
    base: str | None = None
    dtype: str = "bfloat16"
    size: SizeConfig = MISSING
    world: WorldConfig | None = None
    pretrain: PretrainConfig | None = None
    finetune: TrainConfig = MISSING
    sample: SampleBudgetConfig = field(default_factory=SampleBudgetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_length: int = 4096
    max_new_tokens: int | None = None
    domains: dict[str, DomainConfig] = MISSING
    unsupported: dict[str, str] = field(default_factory=dict)


@dataclass
class TrackerConfig:
    """Weights & Biases. kind: wandb or none; mode: null means online with WANDB_API_KEY set, else offline."""

    kind: str = "wandb"
    project: str = "harc"
    entity: str | None = None
    mode: str | None = None
    directory: str = "${outputs}"


@dataclass
class ExperimentConfig:
    """One table or figure: which report is made of its cells.

    exclude: cells of the sweep that are not rows. own_merge: calibrates a merge of the user's own, in place of a cell.
    """

    name: str = "cells"
    report: str | None = None
    title: str = ""
    exclude: list[dict[str, str]] = field(default_factory=list)
    own_merge: bool = False


@dataclass
class Config:
    """Everything one cell is composed of.

    merged, sources, data, out, heldout: a merge of your own to calibrate, see conf/experiment/calibrate.yaml.
    """

    scale: ScaleConfig = MISSING
    merge: MergeConfig = MISSING
    calibrate: CalibrateConfig = MISSING
    calibration_data: CalibrationDataConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    tracker: TrackerConfig = MISSING
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    domains: list[str] = field(default_factory=lambda: ["math", "code"])
    seed: int = 0
    outputs: str = "outputs"
    merged: str | None = None
    sources: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    out: str | None = None
    heldout: float = 0.1
    plan: bool = False
    debug: bool = False
