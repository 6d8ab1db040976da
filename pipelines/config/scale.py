"""The group `scale`: a world to run in. Base model, domains and their data, and budgets."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.data.source import DataSource
from pipelines.runner.estimate import SizeConfig
from pipelines.runner.resources import ResourcesConfig
from pipelines.stages import stage_names
from pipelines.stages.pretrain import ArchitectureConfig, PretrainConfig
from pipelines.stages.sample import SampleBudgetConfig
from pipelines.stages.world import WorldConfig
from pipelines.training.settings import TrainConfig

# One field a stage, so that a wrong name is refused when the configuration is composed.
StageResources: Any = make_dataclass(
    "StageResources",
    [(name, ResourcesConfig, field(default_factory=ResourcesConfig)) for name in stage_names()],
    namespace={"__module__": __name__},
)


@dataclass
class DomainConfig:
    """One domain: what its source is tuned on, calibrated on, diagnosed on and measured on."""

    train: DataSource = MISSING
    """Conversations that the source is tuned on."""

    calibration: DataSource = MISSING
    """Prompts of the calibration set."""

    heldout: DataSource = MISSING
    """Conversations that routing is measured on, which nothing was tuned or calibrated on."""

    tasks: dict[str, str] = MISSING
    """Column of the report -> task of eval/tasks."""

    task_data: dict[str, str] = field(default_factory=dict)
    """Task -> local data file, instead of the task's own dataset."""

    validation_data: dict[str, str] = field(default_factory=dict)
    """Task -> data file of problems that are not the test's, to choose settings on."""

    validation: DataSource | None = None
    """Records that settings are chosen on, answered greedily, where there are no such problems."""

    finetune_steps: int | None = None
    """Steps of this domain's source, where it takes others than the scale's fine-tuning."""

    checkpoint: str | None = None
    """A fine-tuned model of your own (folder or hub id), used instead of the finetune stage."""


@dataclass
class ScaleConfig:
    """A world to run in."""

    name: str = MISSING
    """A plain name; directories of stages and reports begin with it."""

    base: str | None = None
    """The base model, a folder or hub id (null: made by the pretrain stage)."""

    dtype: str = "bfloat16"
    """That checkpoints have and models are run in: float32, bfloat16 or float16."""

    size: SizeConfig = MISSING
    """Of the base model, for estimates."""

    world: WorldConfig | None = None
    """The tiny world, where data is made on the spot."""

    pretrain: PretrainConfig | None = None
    """How the base is made, where `base` names none."""

    architecture: ArchitectureConfig | None = None
    """Of the published base, for a rehearsal with random weights."""

    larger: ArchitectureConfig | None = None
    """The architecture of table 6, where the scale pre-trains its base."""

    finetune: TrainConfig = MISSING
    """How each source is tuned."""

    sft: TrainConfig = MISSING
    """Table 7's tuning on the calibration data."""

    router_sft: TrainConfig = MISSING
    """The same of the routers alone, calibrate=router_sft."""

    sample: SampleBudgetConfig = field(default_factory=SampleBudgetConfig)
    """Calibration responses."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """What generates responses and answers."""

    max_length: int = 4096
    """Tokens per conversation in calibration, diagnosis and merging."""

    max_new_tokens: int | None = None
    """Tokens per answer (null: each task's own limit)."""

    resources: StageResources = field(default_factory=StageResources)
    """Stage -> what it needs while it is made, where that is not what the stage itself says."""

    sweep_samples: int = 16
    """Answers per problem in all experiments but tables 1 and 7."""

    generic: DataSource | None = None
    """Text of no domain, for calibration_data=c4."""

    domains: dict[str, DomainConfig] = MISSING
    """The domains there are; the root's `domains` says which are merged."""

    unsupported: dict[str, str] = field(default_factory=dict)
    """Merging method, or `larger` -> why it is not run at this scale, and what to do."""
