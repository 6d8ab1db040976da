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
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harc.checkpoint import Checkpoint, CheckpointError, dequantised, open_checkpoint
from harc.models.empty import decoder_of, empty_model, stored_dtype
from harc.models.parameters import ParameterReader
from harc.models.routers import Router, find_routers
from harc.models.stand_ins import Done, Given, Reached, Skipped

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
            CheckpointError: a checkpoint that cannot be read, is quantised in a way that is not known, or whose
                configuration is not that of its weights.
        """
        _keep_few_products()
        self.checkpoint = open_checkpoint(source)
        self.device = torch.device(device)
        readable = dequantised(self.checkpoint)
        self.dtype = dtype or stored_dtype(readable)
        self.model = empty_model(self.checkpoint, self.dtype)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.device)
        with contextlib.suppress(ValueError, AttributeError):  # not every architecture has a choice
            # torch has no grouped product in float64
            self.model.set_experts_implementation("eager" if self.dtype == torch.float64 else "grouped_mm")
        self.decoder = decoder_of(self.model)
        lists = {name: child for name, child in self.decoder.named_children() if isinstance(child, nn.ModuleList)}
        self._list_name = max(lists, key=lambda name: len(lists[name]))
        self.blocks = list(lists[self._list_name])
        self.layers = len(self.blocks)
        self._decoder_prefix = next(f"{name}." for name, module in self.model.named_modules() if module is self.decoder)
        self.prefix = f"{self._decoder_prefix}{self._list_name}."
        self.parameters = ParameterReader(readable, self.model)
        self._check_complete()
        self.forms: dict[Any, int | None] = {}  # what harc.models.hidden_states found out about each kind of layer

    @cached_property
    def routers(self) -> dict[int, Router]:
        """The routers, by layer.

        Raises:
            NoRouterError: a model without routers.
        """
        return find_routers(self.model)

    def router_weight(self, layer: int, checkpoint: Checkpoint | None = None) -> Float[Tensor, "experts inputs"]:
        """Reads a layer's router from the checkpoint, or from another one of the same architecture.

        A bias is the last column: it is the weight of a feature that is always 1 (see `router_features`).
        """
        weight, *bias = [(checkpoint or self.checkpoint).read(key) for key in self.routers[layer].keys]
        return torch.cat([weight, *(b[:, None] for b in bias)], dim=1) if bias else weight

    def loaded_router(self, layer: int) -> Float[Tensor, "experts inputs"]:
        """The router weight that a loaded layer computes with."""
        router = self.routers[layer]
        weight = self.model.get_parameter(router.weight_name)
        return (
            torch.cat([weight, self.model.get_parameter(router.bias_name)[:, None]], 1) if router.bias_name else weight
        )

    def router_features(self, layer: int, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens inputs"]:
        """What a layer's router weight multiplies: its inputs, and 1 where it has a bias."""
        return torch.cat([x, x.new_ones(len(x), 1)], dim=1) if self.routers[layer].bias_key else x

    def router_tensors(self, layer: int, weight: Float[Tensor, "experts inputs"]) -> dict[str, Tensor]:
        """A router weight as the checkpoint's tensors, by published name."""
        router = self.routers[layer]
        hidden = router.weight.shape[1]
        return dict(zip(router.keys, (weight[:, :hidden], *weight[:, hidden:].unbind(1)), strict=True))

    def set_router(self, layer: int, weight: Float[Tensor, "experts inputs"]) -> None:
        """Puts a router weight into the loaded layer, rounded to what the layer computes in."""
        router = self.routers[layer]
        names = [name for name in (router.weight_name, router.bias_name) if name]
        for name, tensor in zip(names, self.router_tensors(layer, weight).values(), strict=True):
            parameter = self.model.get_parameter(name)
            parameter.data = tensor.to(device=parameter.device, dtype=parameter.dtype)

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

    @contextlib.contextmanager
    def loaded_head(self) -> Iterator[None]:
        """Holds in memory what `final` and `logits` need: all outside the layers but the embeddings, unless tied to it.

        Raises:
            CheckpointError: a tensor that is not in the checkpoint.
        """
        embeddings, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        tied = head is not None and self.model.config.tie_word_embeddings
        unread = head if tied else embeddings
        name = next(f"{name}.weight" for name, module in self.model.named_modules() if module is unread)
        tensors = self.load(lambda each: self.is_outer(each) and each != name)
        if tied:
            head.weight = embeddings.weight
        try:
            yield
        finally:
            for each in [*tensors, name]:
                self._set(each, self.model.get_parameter(each).to("meta"))
            return_freed_memory()

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

    def form(self, layer: int) -> int | None:
        """How many things the block of a layer of the form h' + moe(x) returns; None for another form, or untried."""
        return self.forms.get((type(self.blocks[layer]), type(self.moe(layer))))

    def embed(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The first layer's input; the embeddings must be loaded."""
        return self._until(0, Reached(self.blocks[0], None), mask, input_ids=ids)

    def run(self, layer: int, hidden: Tensor, mask: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The output of a loaded layer on padded hidden states; mask: 1 on real tokens."""
        return self._until(layer, Reached(self.blocks[layer], hidden), mask, inputs_embeds=hidden)

    def final(self, hidden: Tensor, mask: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The head's input, from the last layer's output; the outer weights must be loaded."""
        with self._blocks_but(self.layers - 1, Given(self.blocks[-1], hidden)):
            return self.decoder(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor, mask: Tensor) -> Float[Tensor, "batch length vocabulary"]:
        """The logits, from the last layer's output; the outer weights must be loaded."""
        with self._blocks_but(self.layers - 1, Given(self.blocks[-1], hidden)):
            return self.model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).logits

    def _until(self, layer: int, block: nn.Module, mask: Tensor, **inputs: Tensor) -> Tensor:
        with self._blocks_but(layer, block):
            try:
                self.decoder(**inputs, attention_mask=mask, use_cache=False)
            except Done as done:
                return done.hidden
        raise RuntimeError(f"{type(self.model).__name__}: the forward pass never reached layer {layer}")

    @contextlib.contextmanager
    def _blocks_but(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Lets all layers hand their input on, but one."""
        blocks = nn.ModuleList(Skipped(own) for own in self.blocks)
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

    def _check_complete(self) -> None:
        """Refuses a configuration of other parameters than the checkpoint's: names in the decoder, and shapes."""
        self.parameters.check_shapes()
        held = set(self.parameters.names)
        lacking = [n for n in self.model.state_dict() if n.startswith(self._decoder_prefix) and n not in held]
        if lacking:
            raise CheckpointError(
                f"{self.checkpoint.source}: no tensor for {lacking[0]} (in all {len(lacking)} are missing); "
                f"config.json describes {self.layers} layers: is it of these weights, and are all weight files there?"
            )

    def _set(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def return_freed_memory() -> None:
    """Hands what was freed back to the system, where the C library can (glibc keeps tensors' blocks below 32 MB)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _keep_few_products() -> None:
    """Limits what oneDNN keeps, if no product was made in this process yet.

    It keeps a compiled product for each shape it has met, 1024 of them by default, and every expert of every block of
    tokens has another number of rows: hundreds of megabytes for nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
