"""The random_base stage: a rehearsal's base model, of the published architecture, with random weights."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runner.estimate import LOADED_GB, Estimate, ModelSize, Work
from pipelines.runner.stage import Node, Stage
from pipelines.stages.pretrain import ArchitectureConfig


@dataclass
class RandomBaseConfig:
    """A model that nothing was learned by."""

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """The model."""

    dtype: str = "bfloat16"
    """Of the checkpoint: float32, bfloat16 or float16."""

    seed: int = 0
    """Of the weights."""


def random_base(config: RandomBaseConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes the checkpoint, in the published layout, with the tokenizer of `inputs["world"]`.

    Returns:
        parameters; seconds.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(inputs["world"] / "tokenizer")
    tokenizer.chat_template = None  # a base model's has none; the fine-tuning's goes with its sources
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    architecture = AutoConfig.for_model(config.architecture.model_type, **special, **config.architecture.settings)
    set_seed(config.seed)
    model = AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, config.dtype))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "seconds": time.perf_counter() - began}


def needs(node: Node, model: ModelSize) -> Estimate:
    """The weights, in memory twice while they are written in the published layout."""
    return Estimate(LOADED_GB + 2 * model.model, model.model)


def work(node: Node, model: ModelSize) -> Work:
    """The weights drawn and written."""
    return Work(gigabytes=2 * model.model)


SPEC = Stage("random_base", RandomBaseConfig, random_base, needs, work=work)
