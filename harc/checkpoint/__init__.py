"""Checkpoints in the published Hugging Face layout: read lazily, checked against one another, written atomically.

Only safetensors are read; a tensor's bytes are fetched when it is asked for, so a model is never in memory as a whole.
"""

from harc.checkpoint.check import check_family, check_finite, check_sources
from harc.checkpoint.copy import copy_extras, replace_tensors
from harc.checkpoint.dequantise import Dequantised, dequantised
from harc.checkpoint.read import Checkpoint, CheckpointError, TensorInfo, natural_key, open_checkpoint, read_json
from harc.checkpoint.write import CheckpointWriter, atomic_directory

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWriter",
    "Dequantised",
    "TensorInfo",
    "atomic_directory",
    "check_family",
    "check_finite",
    "check_sources",
    "copy_extras",
    "dequantised",
    "natural_key",
    "open_checkpoint",
    "read_json",
    "replace_tensors",
]
