"""A causal language model run layer by layer from its checkpoint: one decoder layer's weights in memory at a time.

This is what calibration, diagnosis, Fisher and RegMean run models with. The model is built without weights; a layer's
(or a part of them) are read when it is entered and dropped after it. A layer is run by the model's own forward pass in
which every other layer hands its input on, so masks, positions and layer types are the architecture's.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from harc.parameters import ParameterReader
from harc.routers import Router, find_routers

# oneDNN keeps a compiled product for each shape it has met, 1024 of them by default, and every expert of every block of
# tokens has another number of rows: hundreds of megabytes for nothing. Read when the first product is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

Part = Literal["layer", "attention", "moe"]


class LayerStream:
    """A causal language model on disk whose layers are loaded one at a time.

    Attributes: checkpoint; dtype and device the model computes in; model and decoder (weights on the meta device);
    blocks, the decoder layers; layers, their count; prefix, what the names of their parameters start with, before the
    index; parameters, which reads the checkpoint.
    """

    def __init__(
        self, source: str | Path | Checkpoint, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> None:
        """Opens the checkpoint and builds the model without its weights.

        Raises:
            CheckpointError: a checkpoint that cannot be read.
        """
        self.checkpoint = open_checkpoint(source)
        config = AutoConfig.from_pretrained(self.checkpoint.folder)
        self.device = torch.device(device)
        self.dtype = dtype or _stored_dtype(self.checkpoint)
        with init_empty_weights(include_buffers=False):
            self.model = AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval().requires_grad_(False)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.device)
        with contextlib.suppress(ValueError, AttributeError):  # not every architecture has a choice
            self.model.set_experts_implementation("grouped_mm")
        self.decoder = self.model.get_decoder()
        lists = {name: child for name, child in self.decoder.named_children() if isinstance(child, nn.ModuleList)}
        self._list_name = max(lists, key=lambda name: len(lists[name]))
        self.blocks = list(lists[self._list_name])
        self.layers = len(self.blocks)
        self._decoder_prefix = next(f"{name}." for name, module in self.model.named_modules() if module is self.decoder)
        self.prefix = f"{self._decoder_prefix}{self._list_name}."
        self.parameters = ParameterReader(self.checkpoint, self.model)
        self.forms: dict[Any, bool] = {}  # what harc.hidden_states found out about each kind of layer

    @cached_property
    def routers(self) -> dict[int, Router]:
        """The routers, by layer.

        Raises:
            NoRouterError: a model without routers.
        """
        return find_routers(self.model)

    def router_weight(self, layer: int, checkpoint: Checkpoint | None = None) -> Float[Tensor, "experts hidden"]:
        """Reads a layer's router from the checkpoint, or from another one of the same architecture."""
        return (checkpoint or self.checkpoint).read(self.routers[layer].checkpoint_key)

    def set_router(self, layer: int, weight: Float[Tensor, "experts hidden"]) -> None:
        """Puts a router weight into the loaded layer."""
        parameter = cast(nn.Parameter, self.routers[layer].module.weight)
        parameter.data = weight.to(device=parameter.device, dtype=parameter.dtype)

    @contextlib.contextmanager
    def loaded(self, layer: int | None, part: Part = "layer") -> Iterator[dict[str, Tensor]]:
        """Holds weights in memory for the time of the block, and yields them by parameter name.

        layer: its weights, or the embeddings' and all else that the decoder holds outside its layers (None).
        part: the whole layer, its MoE block, or all but that.

        Raises:
            CheckpointError: a tensor that is not in the checkpoint, cannot be read or does not fit.
        """
        tensors = self.load(self._chosen(layer, part))
        try:
            yield tensors
        finally:
            for name, tensor in tensors.items():
                self._set(name, tensor.to("meta"))
            tensors.clear()  # whoever still holds the dictionary holds no memory
            return_freed_memory()

    def load(self, chosen: Callable[[str], bool]) -> dict[str, Tensor]:
        """Puts the chosen parameters into the model, by name, until they are loaded again."""
        return_freed_memory()
        tensors = dict(self.parameters.read(chosen, self.dtype, self.device))
        needed = [name for name in self.model.state_dict() if chosen(name) and name not in tensors]
        if needed:
            raise CheckpointError(f"{self.checkpoint.source}: no tensor for {needed[0]}")
        for name, tensor in tensors.items():
            self._set(name, tensor)
        return tensors

    def read(self, layer: int | None) -> dict[str, Tensor]:
        """Reads a layer's parameters, or all those outside the layers (None), by name; the model stays as it is."""
        chosen = self.is_outer if layer is None else self._chosen(layer, "layer")
        return dict(self.parameters.read(chosen, self.dtype, self.device))

    def load_outer(self) -> None:
        """Puts all weights outside the layers into the model, the head's too; they stay.

        Raises:
            CheckpointError: a tensor that is not in the checkpoint.
        """
        head, embeddings = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        for name, tensor in self.read(None).items():
            self._set(name, tensor)
        if head is not None and head.weight.is_meta and self.model.config.tie_word_embeddings:
            head.weight = embeddings.weight
        waiting = [name for name, value in self.model.state_dict().items() if value.is_meta and self.is_outer(name)]
        if waiting:
            raise CheckpointError(f"{self.checkpoint.source}: no tensor for the model's {waiting[0]}")

    def outer_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters outside the layers, each once."""
        return {name: value for name, value in self.model.named_parameters() if self.is_outer(name)}

    def is_outer(self, name: str) -> bool:
        """Whether a parameter lies outside the layers."""
        return not name.startswith(self.prefix)

    def weight_bytes(self) -> int:
        """What the largest layer's weights, or the embeddings', take in memory, in bytes."""
        places = [None, *range(self.layers)]
        return max(self.parameters.bytes(self._chosen(place, "layer"), self.dtype) for place in places)

    def moe(self, layer: int) -> nn.Module:
        """The MoE block of a layer."""
        return self.model.get_submodule(self.routers[layer].moe_name)

    def embed(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The first layer's input; the embeddings must be loaded."""
        return self._until(0, _Reached(self.blocks[0], None), mask, input_ids=ids)

    def run(self, layer: int, hidden: Tensor, mask: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The output of a loaded layer on padded hidden states; mask: 1 on real tokens."""
        return self._until(layer, _Reached(self.blocks[layer], hidden), mask, inputs_embeds=hidden)

    def final(self, hidden: Tensor, mask: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The head's input, from the last layer's output; the outer weights must be loaded."""
        with self._blocks_but(self.layers - 1, _Given(self.blocks[-1], hidden)):
            return self.decoder(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor, mask: Tensor) -> Float[Tensor, "batch length vocabulary"]:
        """The logits, from the last layer's output; the outer weights must be loaded."""
        with self._blocks_but(self.layers - 1, _Given(self.blocks[-1], hidden)):
            return self.model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).logits

    def _until(self, layer: int, block: nn.Module, mask: Tensor, **inputs: Tensor) -> Tensor:
        with self._blocks_but(layer, block):
            try:
                self.decoder(**inputs, attention_mask=mask, use_cache=False)
            except _Done as done:
                return done.hidden
        raise RuntimeError(f"{type(self.model).__name__}: the forward pass never reached layer {layer}")

    @contextlib.contextmanager
    def _blocks_but(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Lets all layers hand their input on, but one."""
        blocks = nn.ModuleList(_Skipped(own) for own in self.blocks)
        blocks[layer] = block
        setattr(self.decoder, self._list_name, blocks)
        try:
            yield
        finally:
            setattr(self.decoder, self._list_name, nn.ModuleList(self.blocks))

    def _chosen(self, layer: int | None, part: Part) -> Callable[[str], bool]:
        """Which parameters `loaded` loads."""
        if layer is None:
            return lambda name: name.startswith(self._decoder_prefix) and self.is_outer(name)
        whole = f"{self.prefix}{layer}."
        if part == "layer":
            return lambda name: name.startswith(whole)
        moe = f"{self.routers[layer].moe_name}."
        return lambda name: name.startswith(whole) and name.startswith(moe) == (part == "moe")

    def _set(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class _Done(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _Skipped(nn.Module):
    """Stands for a layer that is not run; the forward pass may still ask for its attributes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class _Given(_Skipped):
    """Stands for a layer whose output is known."""

    def __init__(self, block: nn.Module, hidden: Tensor | None) -> None:
        super().__init__(block)
        self.__dict__["hidden"] = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.__dict__["hidden"]


class _Reached(_Given):
    """The one layer that is run; its output (its input, where none is given) ends the forward pass."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.__dict__["hidden"] is None:
            raise _Done(hidden_states)
        out = self.__dict__["block"](self.__dict__["hidden"], *args, **kwargs)
        raise _Done(out[0] if isinstance(out, tuple) else out)


def return_freed_memory() -> None:
    """Hands what was freed back to the system, where the C library can (glibc keeps tensors' blocks below 32 MB)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    return next(info.dtype for info in checkpoint.tensors.values() if info.dtype.is_floating_point)
