"""The pretrain stage: a model trained from random weights on the world's mixture of all domains."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipelines.data.source import DataSource
from pipelines.runner.estimate import LOADED_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import trained_tokens, training
from pipelines.training.settings import LaunchConfig, TrainConfig


@dataclass
class ArchitectureConfig:
    """The model that training starts from with random weights."""

    model_type: str = "olmoe"
    """transformers' name of the architecture."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the architecture by transformers' names; what is not named keeps transformers' default."""


@dataclass
class PretrainConfig(TrainConfig):
    """Training from random weights."""

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """The model."""

    data: DataSource = MISSING
    """The mixture."""


def pretrain(
    config: PretrainConfig, inputs: dict[str, Path], out: Path, launch: LaunchConfig | None = None
) -> dict[str, Any]:
    """Trains `config.architecture` from random weights; tokenizer and vocabulary are the world's.

    Args:
        config: architecture, data and training settings.
        inputs: `world`, the tiny world's directory.
        out: where the checkpoint, its tokenizer and loss.jsonl go; an earlier attempt's work in it is continued.
        launch: number of processes.

    Returns:
        steps, final loss (nats a token), examples, tokens, tokens that carry loss, parameters, training seconds.
    """
    from pipelines.training.run import train

    return train("pretrain", config, inputs, out, launch)


def needs(node: Node, model: ModelSize) -> Estimate:
    """The training state and activations in memory; on disk the model, and checkpoints on the way."""
    return Estimate(LOADED_GB + 1.1 * model.training, model.model, model.training_checkpoints)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for each of the processes."""
    return training(node, needs(node, model).memory_gb, model)


def work(node: Node, model: ModelSize) -> Work:
    """All steps, forward and backward."""
    return Work(
        flops=3 * model.forward(trained_tokens(node.config, model.size.train_tokens, model)), gigabytes=model.model
    )


SPEC = Stage("pretrain", PretrainConfig, pretrain, needs, resources, work, resumable=True)
