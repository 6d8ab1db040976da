"""The scale, the tracker, the experiment, and the root: everything one cell is composed of."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.config.data import CalibrationDataConfig, DataSource, DomainConfig, WorldConfig
from pipelines.config.measuring import CalibrateConfig, EvaluateConfig, SampleBudgetConfig
from pipelines.config.merging import MergeConfig
from pipelines.config.training import ArchitectureConfig, LaunchConfig, PretrainConfig, TrainConfig


@dataclass
class SizeConfig:
    """What the plan's estimates of memory and disk are made from: parameter counts and shapes of the base model."""

    parameters: float = MISSING
    layers: int = MISSING
    hidden: int = MISSING
    experts: int = MISSING


@dataclass
class ScaleConfig:
    """A world to run in: base model, data and budgets.

    larger: the architecture of table 6, where the scale pre-trains its base. sft: table 7's tuning on calibration data.
    generic: text of no domain, the calibration data `c4`. sweep_samples: samples a problem in all but tables 1 and 7.
    side_by_side: how many experiments +experiment=paper runs at once, each on its share of the cores.
    """

    name: str = MISSING
    base: str | None = None
    dtype: str = "bfloat16"
    size: SizeConfig = MISSING
    world: WorldConfig | None = None
    pretrain: PretrainConfig | None = None
    larger: ArchitectureConfig | None = None
    finetune: TrainConfig = MISSING
    sft: TrainConfig = MISSING
    sample: SampleBudgetConfig = field(default_factory=SampleBudgetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_length: int = 4096
    max_new_tokens: int | None = None
    sweep_samples: int = 16
    side_by_side: int = 1
    generic: DataSource | None = None
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

    exclude: cells of the sweep that are not rows. cells: cells that no product of options gives, as lines of overrides;
    a line may list several values (`calibrate.alpha=0.1,0.9`) and stands for all their combinations. cell: which one.
    beside: the domains of a smaller merge whose calibration is reported beside (table 5).
    runs: experiments that this one runs, each in its own process; alone: those of them with nothing beside them.
    own_merge, dashboard: in place of a cell.
    """

    name: str = "cells"
    report: str | None = None
    title: str = ""
    exclude: list[dict[str, str]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    cell: int | None = None
    beside: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    own_merge: bool = False
    dashboard: bool = False


@dataclass
class Config:
    """Everything one cell is composed of.

    larger: on the scale's larger architecture. swap: `source` gives the merged model each domain's source routers,
    `merged` gives each source the merged routers. sft: tune on the calibration data after merging and calibrating.
    routing_text: heldout or calibration, what routing is measured on. cost_repeats: how often merging and calibration
    are run again to measure their cost. tuned: settings chosen by +experiment=grid.
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
    larger: bool = False
    swap: str | None = None
    sft: bool = False
    routing_text: str = "heldout"
    cost_repeats: int = 0
    tuned: str | None = None
    seed: int = 0
    outputs: str = "outputs"
    merged: str | None = None
    sources: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    out: str | None = None
    heldout: float = 0.1
    plan: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Refuses choices that are none when the configuration is composed."""
        if not self.outputs:
            raise ValueError("outputs is empty: name the folder that everything made goes to")
        for key, valid in {"swap": (None, "source", "merged"), "routing_text": ("heldout", "calibration")}.items():
            if getattr(self, key) not in valid:
                raise ValueError(f"{key}={getattr(self, key)}: expected one of {', '.join(map(str, valid))}")
