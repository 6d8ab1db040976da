"""The router_sft stage: the merged routers trained to the sources' recorded routing, the rest of the model frozen.

The trained alternative to HARC that the authors' repository has. On each domain's calibration text, with the logits
z_s that the domain's source router had on the source's own hidden states and the model's z_m on its own,

    loss = lm_weight × language modelling + kl_weight × mean over layers and tokens of KL(softmax z_s ‖ softmax z_m)
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runner.estimate import BYTES, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources, on_gpus
from pipelines.runner.stage import Node, Stage
from pipelines.stages.calibrate import CalibrateConfig
from pipelines.stages.inputs import asked_records, trained_tokens
from pipelines.stages.sft import SftConfig


@dataclass
class RouterSftConfig(CalibrateConfig):
    """Router-only fine-tuning, with the scale's `router_sft` as its schedule."""

    method: str = "router_sft"
    """router_sft."""

    kl_weight: float = 100.0
    """Factor on the forward KL (nats) from the sources' recorded routing, 0 or more; the authors'."""

    lm_weight: float = 1.0
    """Factor on the language-modelling loss (nats a token), 0 or more; one of the two is above 0."""

    def __post_init__(self) -> None:
        """Refuses factors out of range when the configuration is composed."""
        for key in ("kl_weight", "lm_weight"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"calibrate.{key}={value}: expected a number, 0 or more")
        if not self.kl_weight + self.lm_weight:
            raise ValueError("calibrate.kl_weight and calibrate.lm_weight are both 0: nothing would be learned")

    @property
    def label(self) -> str:
        """What such a model is called after its merge's label."""
        return self.method


@dataclass
class RouterSftStageConfig(SftConfig):
    """One router-only fine-tuning of one merged model."""

    loss: RouterSftConfig = field(default_factory=RouterSftConfig)
    """The two parts of the loss."""

    fraction: float = 1.0
    """Fraction of each domain's calibration records that is used, above 0, at most 1."""

    seed: int = 0
    """Which records those are."""

    sources: dict[str, str | None] = field(default_factory=dict)
    """Domain -> its source model, a folder or hub id (null: input `source_<domain>`)."""


def router_sft(config: RouterSftStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Trains the routers of `inputs["model"]` on the records of all `data_<domain>`, shuffled together.

    Arguments and result are those of `pretrain`; each `source_<domain>` is run once over its domain's records.
    """
    from pipelines.training.run import train

    return train("router_sft", config, inputs, out)


def needs(node: Node, model: ModelSize) -> Estimate:
    """Weights in fp32 and activations; on disk the model, resume checkpoints and the recorded logits."""
    weights = model.model * BYTES["float32"] / BYTES[model.dtype]
    logits = _tokens(node, model) * model.size.layers * model.size.experts * BYTES["float32"] / 1e9
    return Estimate(1.5 * weights, model.model + 2 * weights + logits)


def resources(node: Node, model: ModelSize) -> Resources:
    """One GPU: this is not trained in several processes."""
    return on_gpus(1, model.model, needs(node, model).memory_gb)


def work(node: Node, model: ModelSize) -> Work:
    """All steps, forward and backward, and the sources once over their records."""
    tokens = _tokens(node, model)
    return Work(
        flops=3 * model.forward(trained_tokens(node.config.train, tokens, model)) + model.forward(tokens),
        gigabytes=3 * model.model,
    )


def _tokens(node: Node, model: ModelSize) -> float:
    """About how many tokens the records have."""
    return asked_records(node) * node.config.fraction * model.record(node.config.train.max_length)


SPEC = Stage("router_sft", RouterSftStageConfig, router_sft, needs, resources, work, resumable=True)
