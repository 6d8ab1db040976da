"""The model of a checkpoint, as its configuration describes it, without weights."""

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harc.checkpoint import Checkpoint, CheckpointError


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model that config.json describes, its weights on the meta device.

    Raises:
        CheckpointError: a configuration that transformers makes no causal language model of.
    """
    file = checkpoint.folder / "config.json"
    if not isinstance(checkpoint.config.get("model_type"), str):
        raise CheckpointError(f"{file}: has no `model_type`; take the config.json that belongs to these weights")
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        if hasattr(config, "quantization_config"):  # its weights are dequantised as they are read
            del config.quantization_config
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # each configuration class checks in its own way
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file}: transformers makes no causal language model of it: {said}") from error
    return model.eval().requires_grad_(False)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that holds the decoder layers; `get_decoder` gives some models themselves."""
    found = model.get_decoder()
    if found is not model:
        return found
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), found)


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of a checkpoint's first floating-point tensor."""
    return next(info.dtype for info in checkpoint.tensors.values() if info.dtype.is_floating_point)
