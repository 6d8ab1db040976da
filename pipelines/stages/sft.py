"""The sft stage: a merged model tuned on the calibration data of all domains (table 7)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipelines.runner.estimate import ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.finetune import needs
from pipelines.stages.inputs import MORE_GPUS, RECORDS, trained_tokens, training
from pipelines.training.settings import LaunchConfig, TrainConfig


@dataclass
class SftConfig:
    """Tuning every weight on the calibration data."""

    train: TrainConfig = MISSING
    """How it is trained."""


def sft(config: SftConfig, inputs: dict[str, Path], out: Path, launch: LaunchConfig | None = None) -> dict[str, Any]:
    """Tunes every weight of `inputs["model"]` on the calibration records of all `data_<domain>`, shuffled together.

    Arguments and result are those of `pretrain`.
    """
    from pipelines.training.run import train

    return train("sft", config, inputs, out, launch)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for each of the processes."""
    return training(node, needs(node, model).memory_gb, model)


def work(node: Node, model: ModelSize) -> Work:
    """All steps, forward and backward."""
    tokens = sum(up.config.target or RECORDS for name, up in node.inputs.items() if name.startswith("data_"))
    tokens *= model.record(node.config.train.max_length)
    return Work(flops=3 * model.forward(trained_tokens(node.config.train, tokens, model)), gigabytes=model.model)


SPEC = Stage("sft", SftConfig, sft, needs, resources, work, resumable=True, remedy=MORE_GPUS)
