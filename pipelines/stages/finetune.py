"""The finetune stage: one domain's source model, tuned from the base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipelines.data.source import DataSource
from pipelines.runner.estimate import LOADED_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import MORE_GPUS, trained_tokens, training
from pipelines.training.settings import LaunchConfig, TrainConfig

OWN_SOURCES = f"{MORE_GPUS}, or name a tuned model of your own: scale.domains.<domain>.checkpoint"


@dataclass
class FinetuneConfig:
    """Tuning every weight on one domain's data."""

    base: str | None = None
    """Checkpoint to start from, a folder or hub id (null: the one that a stage made, input `base`)."""

    data: DataSource = MISSING
    """The domain's training data."""

    train: TrainConfig = MISSING
    """How it is trained."""


def finetune(
    config: FinetuneConfig, inputs: dict[str, Path], out: Path, launch: LaunchConfig | None = None
) -> dict[str, Any]:
    """Tunes every weight of `inputs["base"]` (or of the model `config.base` names) on one domain's data.

    Arguments and result are those of `pretrain`; `inputs` may also hold `world`, for data paths `world:…`.
    """
    from pipelines.training.run import train

    return train("finetune", config, inputs, out, launch)


def needs(node: Node, model: ModelSize) -> Estimate:
    """The training state and activations in memory; on disk the model, and what a killed run resumes from."""
    return Estimate(LOADED_GB + 1.1 * model.training, model.model, model.training_checkpoints)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for each of the processes."""
    return training(node, needs(node, model).memory_gb, model)


def work(node: Node, model: ModelSize) -> Work:
    """All steps, forward and backward."""
    return Work(
        flops=3 * model.forward(trained_tokens(node.config.train, model.size.train_tokens, model)),
        gigabytes=model.model,
    )


SPEC = Stage("finetune", FinetuneConfig, finetune, needs, resources, work, resumable=True, remedy=OWN_SOURCES)
