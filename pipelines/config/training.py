"""The training stages, and how they are launched."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pipelines.config.data import DataSource


@dataclass
class ArchitectureConfig:
    """The model that `pretrain` starts from random weights (tiny scale only), by transformers' config names."""

    model_type: str = "olmoe"
    settings: dict[str, Any] = field(default_factory=dict)


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
class SftConfig:
    """The sft stage: tuning a merged model on the calibration data of all domains (table 7)."""

    train: TrainConfig = MISSING


@dataclass
class LaunchConfig:
    """How a training stage is launched; not part of any stage's key, since it must not change the result.

    processes: more than one runs `accelerate launch` with the named file of conf/accelerate (fsdp or zero2).
    """

    processes: int = 1
    accelerate: str = "fsdp"
