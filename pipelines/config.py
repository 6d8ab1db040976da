"""The typed configuration: one dataclass a group and a stage, all defaults in conf/ or here, once.

Hydra composes conf/ against these, so a wrong key or type fails before anything runs. A stage's dataclass is also what
its key is hashed from: a field here is a reason to make the stage again.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from eval.config import EngineConfig


@dataclass
class DataSource:
    """Where examples come from, and which of them.

    path: a Hugging Face dataset id, a local file or folder, or `world:<file>` for a file of the tiny world.
    format: the adapter of pipelines/data.py that turns a row into a record.
    where: column -> accepted values; a row must match all of them.
    """

    path: str = MISSING
    format: str = "records"
    name: str | None = None
    split: str = "train"
    where: dict[str, list[str]] = field(default_factory=dict)
    skip: int = 0
    limit: int | None = None
    shuffle_seed: int | None = None


@dataclass
class DomainConfig:
    """One domain: what its source is tuned on, calibrated on, diagnosed on and measured on.

    checkpoint: a fine-tuned model of your own (folder or hub id), used instead of the finetune stage.
    tasks: column of the report -> task of eval/tasks.
    task_data: task -> local data file, instead of the task's own dataset.
    """

    train: DataSource = MISSING
    calibration: DataSource = MISSING
    heldout: DataSource = MISSING
    tasks: dict[str, str] = MISSING
    task_data: dict[str, str] = field(default_factory=dict)
    checkpoint: str | None = None


@dataclass
class ArchitectureConfig:
    """The model that `pretrain` starts from random weights (tiny scale only), by transformers' config names."""

    model_type: str = "olmoe"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class WorldConfig:
    """What the procedural tiny world holds.

    seed: of every choice; another seed is another world of the same kind.
    vocabulary: tokens of the tokenizer.
    max_length: longest sequence of the model, in tokens.
    pretrain: records of the pre-training mixture, half math, half code.
    drills: share of them that is short exercises (arithmetic facts, single operations) instead of whole problems.
    finetune: training records a domain.
    calibration, heldout: records a domain.
    validation, test: problems a benchmark.
    """

    seed: int = 0
    vocabulary: int = 768
    max_length: int = 320
    pretrain: int = 40000
    drills: float = 0.3
    finetune: int = 12000
    calibration: int = 500
    heldout: int = 200
    validation: int = 100
    test: int = 200


@dataclass
class TrainConfig:
    """One run of TRL's SFTTrainer. Steps or epochs, whichever is set; sequences a step = batch_size.

    dtype: of the checkpoint that is written. Training is in float32 on a CPU, in bf16 autocast over float32 master
    weights on a GPU.
    chat_template: a Jinja file, or the name of one in conf/chat_templates, instead of the tokenizer's own (null: that).
    attention: transformers' name of the attention kernel (null: its default).
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_length: int = 4096
    packing: bool = False
    load_balancing: float = 0.0
    responses_only: bool = True
    dtype: str = "bfloat16"
    gradient_checkpointing: bool = False
    chat_template: str | None = None
    attention: str | None = None
    save_steps: int = 500
    log_steps: int = 10
    seed: int = 0


@dataclass
class PretrainConfig(TrainConfig):
    """Training from random weights on the mixture of all domains, with the load-balancing loss."""

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: DataSource = MISSING


@dataclass
class FinetuneConfig:
    """The finetune stage of one domain."""

    base: str | None = None
    data: DataSource = MISSING
    train: TrainConfig = MISSING


@dataclass
class LaunchConfig:
    """How a training stage is launched; not part of any stage's key, since it must not change the result.

    processes: more than one runs `accelerate launch` with the named file of conf/accelerate (fsdp or zero2).
    """

    processes: int = 1
    accelerate: str = "fsdp"


@dataclass
class CalibrationDataConfig:
    """Composition of the calibration set: srccrt (the source's correct responses) or prompt (prompts alone)."""

    composition: str = "srccrt"
    fraction: float = 1.0


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
class WudiConfig(MergeConfig):
    """Per linear layer, Adam on the interference with every task vector."""

    method: str = "wudi"
    learning_rate: float = 2e-5
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
    fraction: float = 1.0
    max_length: int = 4096
    dtype: str = "bfloat16"


@dataclass
class CalibrateConfig:
    """A calibration of the merged routers; `none` leaves them as merged."""

    method: str = MISSING


@dataclass
class HarcConfig(CalibrateConfig):
    """HARC (METHOD sections 3 to 5).

    alpha: a number from 0 to 1, or `auto`: chosen by held-out routing KL. layers: `all`, or a number: that many last
    MoE layers. memory_budget_gb: beyond it hidden states go to memory-mapped files.
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
        if self.layers != "all" and not (isinstance(self.layers, int) and self.layers >= 1):
            raise ValueError(f"calibrate.layers={self.layers}: expected all, or how many of the last MoE layers")
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
    max_length: int = 4096
    dtype: str = "bfloat16"
    sources: dict[str, str | None] = field(default_factory=dict)


@dataclass
class DiagnoseConfig:
    """The diagnose stage: routing of a model against its sources on held-out text."""

    model: str | None = None
    sources: dict[str, str | None] = field(default_factory=dict)
    heldout: dict[str, DataSource] = MISSING
    max_length: int = 4096
    dtype: str = "bfloat16"


@dataclass
class EvaluateConfig:
    """How accuracy is measured. engine: vllm or transformers. limit: problems a task (null: all)."""

    samples: int = 16
    temperature: float = 0.1
    seed: int = 0
    limit: int | None = None
    engine: str = "vllm"
    tasks: list[str] | None = None


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
    """One table or figure: which report is made of its cells. exclude: cells of the sweep that are not rows."""

    name: str = "cells"
    report: str | None = None
    title: str = ""
    exclude: list[dict[str, str]] = field(default_factory=list)


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
