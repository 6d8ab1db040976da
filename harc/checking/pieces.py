"""A checkpoint in pieces that can be held against another one's, whatever layout each is stored in.

A piece is a parameter of the model that config.json describes or, where the parameter holds a layer's experts, one
expert's share of it. Experts stored one key each and experts stored in one fused tensor give the same pieces.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harc.checkpoint import Checkpoint, CheckpointError, dequantised
from harc.models.parameters import ParameterReader
from harc.models.routers import NoRouterError, find_routers

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Piece:
    """parameter: its name in the model; expert: whose share it is, None where it is not one expert's."""

    parameter: str
    expert: int | None

    @property
    def layer(self) -> int | None:
        """The decoder layer; None outside of them."""
        found = re.search(r"\.(\d+)\.", self.parameter)
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """The name within its layer."""
        inside = re.split(r"\.\d+\.", self.parameter, maxsplit=1)[-1]
        return inside.removesuffix(".weight")


class Pieces:
    """A checkpoint's pieces, each read when it is asked for, as it is stored (dequantised)."""

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.checkpoint = dequantised(checkpoint)
        self.reader = ParameterReader(self.checkpoint, model)
        self.experts = {name: self.reader.experts(name) for name in self.reader.names}

    def read(self, piece: Piece) -> Tensor | None:
        """The piece's values; None where the checkpoint has no whole one."""
        if piece.parameter not in self.experts:
            return None
        try:
            return self._read(piece)
        except CheckpointError:  # a share of it is missing, or has another shape: the layout's findings name it
            return None

    def names(self, piece: Piece) -> list[str]:
        """The published names that the piece is made of, in this checkpoint."""
        experts = self.experts.get(piece.parameter)
        if experts is not None and piece.expert is not None:
            return experts.get(piece.expert, [])
        return self.reader.keys_of(piece.parameter)

    def _read(self, piece: Piece) -> Tensor:
        if piece.expert is not None and self.experts[piece.parameter] is not None:
            return self.reader.read_expert(piece.parameter, piece.expert)
        keys = self.reader.keys_of(piece.parameter)
        if len(keys) == 1:
            if piece.expert is None:
                return self.checkpoint.read(keys[0])
            return self.checkpoint.read_rows(keys[0], piece.expert, piece.expert + 1)[0]
        dtype = self.checkpoint.tensors[keys[0]].dtype
        (whole,) = (value for _, value in self.reader.read(lambda name: name == piece.parameter, dtype, _CPU))
        return whole if piece.expert is None else whole[piece.expert]


def pieces_of(model: PreTrainedModel, readers: list[ParameterReader]) -> list[Piece]:
    """All pieces of a model, in order; buffers that no checkpoint holds are none."""
    held = {name for reader in readers for name in reader.names}
    stacked = _stacked(model, readers)
    pieces: list[Piece] = []
    for name, value in model.state_dict().items():
        if name in held:
            experts = range(value.shape[0]) if name in stacked else [None]
            pieces += [Piece(name, expert) for expert in experts]
    return pieces


def _stacked(model: PreTrainedModel, readers: list[ParameterReader]) -> set[str]:
    """The parameters that hold a layer's experts, one after the other."""
    found = {name for reader in readers for name in reader.names if reader.experts(name) is not None}
    try:
        routers = find_routers(model)
    except NoRouterError:
        return found
    for router in routers.values():
        block = model.get_submodule(router.moe_name)
        own = {id(parameter) for parameter in router.module.parameters()}
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear):
                continue
            for leaf, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in own and parameter.ndim > 1 and len(parameter) == len(router.weight):
                    found.add(".".join(part for part in (router.moe_name, path, leaf) if part))
    return found
