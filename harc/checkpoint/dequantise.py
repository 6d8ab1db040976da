"""Quantised checkpoints as what they stand for, in bfloat16, dequantised tensor by tensor when they are read.

    FP8 (DeepSeek, Qwen):  w = q · scale_inv, one scale a block of 128 × 128 entries (`weight_block_size`)
    MXFP4 (gpt-oss):       w = e2m1(q) · 2^(scale − 127), one scale for 32 entries of a row, two entries a byte

Routers are never quantised, so a calibration changes them in the quantised checkpoint as it is.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harc.checkpoint.read import Checkpoint, CheckpointError, TensorInfo, natural_key

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_SCALE, _BLOCKS, _SCALES = "_scale_inv", "_blocks", "_scales"


@dataclass(frozen=True)
class Dequantised(Checkpoint):
    """A quantised checkpoint's tensors under the names and shapes that they stand for.

    stored: the checkpoint on disk; block: rows and columns of an FP8 block.
    """

    stored: Checkpoint
    block: tuple[int, int]

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        return self.stored.files

    def read(self, name: str) -> Tensor:
        """Reads one tensor, dequantised.

        Raises:
            CheckpointError: no such tensor, or its bytes cannot be read.
        """
        shape = self._info(name).shape
        return self.read_rows(name, 0, shape[0]) if shape else self.stored.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads rows start … stop − 1 (first dimension) of a tensor, dequantised."""
        if name + _BLOCKS in self.stored:
            blocks = self.stored.read_rows(name + _BLOCKS, start, stop)
            return _from_mxfp4(blocks, self.stored.read_rows(name + _SCALES, start, stop))
        rows = self.stored.read_rows(name, start, stop)
        if name + _SCALE not in self.stored:
            return rows
        high, wide = self.block
        scale = self.stored.read(name + _SCALE).float()[torch.arange(start, stop) // high]
        return (rows.float() * scale.repeat_interleave(wide, 1)[:, : rows.shape[1]]).bfloat16()


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """A view of a quantised checkpoint as bfloat16; one that is not quantised is returned as it is.

    Raises:
        CheckpointError: a quantisation that is not known, or whose scales are missing.
    """
    settings = checkpoint.config.get("quantization_config")
    if settings is None:
        _refuse_bare_fp8(checkpoint, checkpoint.tensors)
        return checkpoint
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method not in ("fp8", "mxfp4"):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: quantised by {method!r}; only fp8 in blocks and mxfp4 can be "
            "dequantised here: save the model in bfloat16 first (from_pretrained with dequantize, then save_pretrained)"
        )
    names = set(checkpoint.tensors)
    tensors: dict[str, TensorInfo] = {}
    for name, info in checkpoint.tensors.items():
        if name.endswith(_SCALE) or (name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in names):
            continue
        if name.endswith(_BLOCKS):
            tensors[name.removesuffix(_BLOCKS)] = _mxfp4_info(checkpoint, name, info)
        else:
            tensors[name] = replace(info, dtype=torch.bfloat16) if name + _SCALE in names else info
    _refuse_bare_fp8(checkpoint, tensors)
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    ordered = dict(sorted(tensors.items(), key=lambda item: natural_key(item[0])))
    block = _block(checkpoint, settings) if method == "fp8" else (1, 1)
    return Dequantised(checkpoint.source, checkpoint.folder, config, ordered, checkpoint, block)


def _block(checkpoint: Checkpoint, settings: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale; every scale must have the shape that follows."""
    block = settings.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: fp8 with weight_block_size {block!r}, expected [rows, columns]; "
            "other scales are not known here: save the model in bfloat16 first"
        )
    for name, info in checkpoint.tensors.items():
        if name.endswith(_SCALE) and (of := checkpoint.tensors.get(name.removesuffix(_SCALE))) is not None:
            expected = tuple(-(-size // part) for size, part in zip(of.shape, block, strict=False))
            if len(of.shape) != 2 or info.shape != expected:
                raise CheckpointError(f"{info.file}: scale {name} has shape {info.shape}, expected {expected}")
    return block[0], block[1]


def _mxfp4_info(checkpoint: Checkpoint, name: str, info: TensorInfo) -> TensorInfo:
    scales = checkpoint.tensors.get(name.removesuffix(_BLOCKS) + _SCALES)
    if scales is None or len(info.shape) != 4 or scales.shape != info.shape[:3]:
        raise CheckpointError(f"{info.file}: {name} of shape {info.shape} has no scales of its first three dimensions")
    experts, rows, groups, packed = info.shape
    return replace(info, dtype=torch.bfloat16, shape=(experts, groups * packed * 2, rows))


def _from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Packed (experts, rows, groups, 16) and scales (experts, rows, groups) as (experts, columns, rows)."""
    values = torch.tensor(_E2M1)
    pairs = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], dim=-1)  # the low half is first
    wide = torch.ldexp(pairs.flatten(3), scales[..., None].int() - 127)
    return wide.flatten(2).transpose(1, 2).bfloat16().contiguous()


def _refuse_bare_fp8(checkpoint: Checkpoint, tensors: dict[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if info.dtype.is_floating_point and info.dtype.itemsize == 1 and 0 not in info.shape:
            raise CheckpointError(
                f"{info.file}: tensor {name} is {info.dtype} without a scale that is known here ({name}{_SCALE}, and "
                "quantization_config in config.json); save the model in bfloat16 first"
            )
