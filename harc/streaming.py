"""A model forwarded layer by layer from its checkpoint: one decoder layer's weights in memory at a time.

The hidden states of all tokens are kept instead (without padding), in memory or in a memory-mapped file. A layer is run
by the model's own forward pass in which all other layers are skipped, so masks and positions are the architecture's.

One forward a layer. A decoder layer is h' = h + attention(norm(h)), then h' + moe(norm(h')): with the MoE block
returning zeros the layer's output is h' and the block's input x is what its router sees. Both are kept, the router is
changed, and h' + moe(x) completes the layer. This is checked against the plain layer on one batch; a layer of another
form is forwarded twice.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from harc.routers import find_routers
from harc.tokens import TokenSequence, padded_batches


class LayerStream:
    """A causal language model on disk whose layers are loaded one at a time.

    Attributes: checkpoint; routers (by layer); layers (their count); dtype and device the model computes in.
    """

    def __init__(
        self, source: str | Path | Checkpoint, *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> None:
        """Opens the checkpoint and builds the model without its weights.

        Raises:
            CheckpointError: a checkpoint that cannot be read, or that lacks a tensor the model needs.
            NoRouterError: a model without routers.
        """
        self.checkpoint = open_checkpoint(source) if not isinstance(source, Checkpoint) else source
        config = AutoConfig.from_pretrained(self.checkpoint.folder)
        self.device = torch.device(device)
        self.dtype = dtype or _stored_dtype(self.checkpoint)
        with init_empty_weights(include_buffers=False):
            self._model = AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()
        with contextlib.suppress(ValueError, AttributeError):  # not every architecture has a choice
            self._model.set_experts_implementation("grouped_mm")
        self.routers = find_routers(self._model)
        first = next(iter(self.routers.values()))
        self._list_name = first.name[: first.name.index(f".{first.layer}.")]
        self._blocks = list(self._model.get_submodule(self._list_name))
        self._decoder = self._model.get_submodule(self._list_name.rpartition(".")[0])
        self.layers = len(self._blocks)
        self._keys = self._assign_keys()

    def router_weight(self, layer: int, checkpoint: Checkpoint | None = None) -> Float[Tensor, "experts hidden"]:
        """Reads a layer's router from the checkpoint, or from another one of the same architecture."""
        return (checkpoint or self.checkpoint).read(self.routers[layer].checkpoint_key)

    @contextlib.contextmanager
    def loaded(self, layer: int | None) -> Iterator[None]:
        """Holds the weights of one layer (None: the embeddings) in memory for the time of the block."""
        prefix = "" if layer is None else f"{self._list_name}.{layer}."
        with torch.no_grad():
            self._load(self._keys[layer])
            missing = [
                n for n, p in self._owner(layer).named_parameters() if p.is_meta and not self._elsewhere(layer, n)
            ]
            if missing:
                raise CheckpointError(f"{self.checkpoint.source}: no tensor for {prefix}{missing[0]}")
            try:
                yield
            finally:
                for module in self._owner(layer).modules():
                    for name, parameter in module.named_parameters(recurse=False):
                        module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    def set_router(self, layer: int, weight: Float[Tensor, "experts hidden"]) -> None:
        """Puts a router weight into the loaded layer."""
        parameter = cast(nn.Parameter, self.routers[layer].module.weight)
        parameter.data = weight.to(device=parameter.device, dtype=parameter.dtype)

    def run(self, layer: int | None, inputs: Tensor, mask: Tensor) -> Tensor:
        """Runs one loaded layer on padded hidden states (batch, length, hidden); None: embeds token ids."""
        here = layer or 0
        blocks = nn.ModuleList(_Skipped(block) for block in self._blocks)
        blocks[here] = _Reached(self._blocks[here], inputs if layer is not None else None)
        name = self._list_name.rpartition(".")[2]
        setattr(self._decoder, name, blocks)
        words = {"input_ids": inputs} if layer is None else {"inputs_embeds": inputs}
        try:
            self._decoder(**words, attention_mask=mask, use_cache=False)
        except _Done as done:
            return done.hidden
        finally:
            setattr(self._decoder, name, nn.ModuleList(self._blocks))
        raise RuntimeError(f"{type(self._model).__name__}: the forward pass never reached layer {here}")

    def moe(self, layer: int) -> nn.Module:
        """The MoE block of a layer."""
        return self._model.get_submodule(self.routers[layer].moe_name)

    def block(self, layer: int) -> nn.Module:
        """The decoder layer itself."""
        return self._blocks[layer]

    def _owner(self, layer: int | None) -> nn.Module:
        return self._decoder if layer is None else self._blocks[layer]

    def _elsewhere(self, layer: int | None, name: str) -> bool:
        list_name = self._list_name.rpartition(".")[2]
        return layer is None and name.startswith(f"{list_name}.")

    def _assign_keys(self) -> dict[int | None, list[str]]:
        """Which published tensors make up each layer, and the rest of the decoder (None)."""
        keys: dict[int | None, list[str]] = {None: [], **{layer: [] for layer in range(self.layers)}}
        transforms = get_model_conversion_mapping(self._model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        state, prefix = self._model.state_dict(), self._model.base_model_prefix
        decoder = self._list_name.rpartition(".")[0]
        for key in self.checkpoint:
            name, _ = rename_source_key(key, renamings, converters, prefix, state)
            if name.startswith(f"{self._list_name}."):
                layer = int(name[len(self._list_name) + 1 :].split(".")[0])
                if layer in keys:  # a published extra, such as a layer for multi-token prediction, is left out
                    keys[layer].append(key)
            elif name.startswith(f"{decoder}.") and name in state:
                keys[None].append(key)
        return keys

    def _load(self, keys: Sequence[str]) -> None:
        tensors = {key: self.checkpoint.read(key).to(self.device) for key in keys}
        settings = LoadStateDictConfig(
            dtype=self.dtype,
            device_map={"": self.device},
            weight_mapping=cast(Any, get_model_conversion_mapping(self._model)),
        )
        with _quiet():
            info, _ = convert_and_load_state_dict_in_model(self._model, tensors, settings, None)
        problems = {**{name: f"shape {found}" for name, found, _ in info.mismatched_keys}, **info.conversion_errors}
        for name, problem in problems.items():
            raise CheckpointError(f"{self.checkpoint.source}: {name} cannot be loaded: {problem}")


class HiddenStates:
    """The hidden states of some text at one depth of a model: (tokens, hidden), padding left out.

    Attributes: tokens; batches: (token positions in `values`, input ids, mask) of each padded batch; values.
    """

    def __init__(self, stream: LayerStream, sequences: Sequence[TokenSequence], tokens_per_batch: int, store: "Store"):
        self.stream = stream
        self.tokens = sum(len(sequence) for sequence in sequences)
        self.batches = []
        starts = torch.tensor([0] + [len(sequence) for sequence in sequences]).cumsum(0)
        for chosen, ids, mask in padded_batches(sequences, tokens_per_batch):
            rows = [torch.arange(int(starts[i]), int(starts[i + 1])) for i in chosen]
            self.batches.append((torch.cat(rows), ids, mask))
        self._chunk = tokens_per_batch
        self._store = store
        width = next(iter(stream.routers.values())).weight.shape[1]
        self.values = torch.empty(0, width, dtype=stream.dtype)

    def embed(self) -> None:
        """Fills in the token embeddings; the stream's embeddings must be loaded."""
        for number, (rows, ids, mask) in enumerate(self.batches):
            hidden = self.stream.run(None, ids.to(self.stream.device), mask.to(self.stream.device))
            if number == 0:
                self.values = self._store.empty(self.tokens, hidden.shape[-1], hidden.dtype)
            self.values[rows] = hidden[mask.bool()].to(self.values.device)

    def forward(self, layer: int) -> None:
        """Takes all tokens through one loaded layer."""
        for batch in self.batches:
            self._write(batch, self._run(layer, batch))

    def router_inputs(self, layer: int) -> tuple[Float[Tensor, "tokens hidden"], bool]:
        """The inputs of a loaded layer's router, and whether the layer's first half is done (see `complete`)."""
        router, block = self.stream.routers[layer], self.stream.moe(layer)
        split = self._splits(layer)
        kept = self.values[:0]
        seen: list[Tensor] = []
        tap = router.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with _returning_zeros(block, seen) if split else contextlib.nullcontext():
                for number, batch in enumerate(self.batches):
                    seen.clear()
                    hidden = self._run(layer, batch)
                    x = seen[0].reshape(*hidden.shape[:2], -1)[batch[2].bool()]
                    if number == 0:
                        kept = self._store.empty(self.tokens, x.shape[1], x.dtype)
                    kept[batch[0]] = x.to(kept.device)
                    if split:
                        self._write(batch, hidden)
        finally:
            tap.remove()
        return kept, split

    def complete(self, layer: int, x: Float[Tensor, "tokens hidden"], split: bool) -> None:
        """Finishes a layer after `router_inputs`, with the router that is in it now."""
        if not split:
            return self.forward(layer)
        block = self.stream.moe(layer)
        for start in range(0, self.tokens, self._chunk):
            part = x[start : start + self._chunk].to(self.stream.device)
            self.values[start : start + self._chunk] += block(part[None])[0].to(self.values.device)
        return None

    def _run(self, layer: int, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        rows, _, mask = batch
        padded = torch.zeros(*mask.shape, self.values.shape[1], dtype=self.values.dtype, device=self.stream.device)
        padded[mask.bool()] = self.values[rows].to(self.stream.device)
        return self.stream.run(layer, padded, mask.to(self.stream.device))

    def _write(self, batch: tuple[Tensor, Tensor, Tensor], hidden: Tensor) -> None:
        self.values[batch[0]] = hidden[batch[2].bool()].to(self.values.device)

    def _splits(self, layer: int) -> bool:
        """Whether h' + moe(x) is what the plain layer gives, tried on the first batch."""
        block, router = self.stream.moe(layer), self.stream.routers[layer].module
        if block is self.stream.block(layer) or not self.batches:
            return False
        inputs: list[Any] = []
        routed: list[Tensor] = []
        taps = [
            block.register_forward_pre_hook(lambda _, args: inputs.append(args)),
            router.register_forward_pre_hook(lambda _, args: routed.append(args[0])),
        ]
        try:
            plain = self._run(layer, self.batches[0])
        finally:
            for tap in taps:
                tap.remove()
        if len(inputs) != 1 or len(inputs[0]) != 1 or len(routed) != 1:
            return False
        mask = self.batches[0][2].bool()
        x = inputs[0][0]
        if x.shape != plain.shape or not torch.equal(x.reshape(-1), routed[0].reshape(-1)):
            return False
        with _returning_zeros(block, []):
            residual = self._run(layer, self.batches[0])[mask]
        output = block(x[mask][None])
        if not isinstance(output, Tensor):
            return False
        difference = (residual + output[0] - plain[mask]).float().norm() / plain[mask].float().norm()
        return bool(difference < (1e-5 if plain.dtype == torch.float32 else 2e-2))


class Store:
    """Makes large tensors in memory, or in memory-mapped files once `budget_gb` is spent (None: always memory)."""

    def __init__(self, budget_gb: float | None = None, folder: str | Path | None = None) -> None:
        self._left = float("inf") if budget_gb is None else budget_gb * 1e9
        self._folder = folder

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised (rows, columns) tensor; a mapped file disappears with the last tensor that uses it."""
        size = rows * columns * dtype.itemsize
        if size <= self._left:
            self._left -= size
            return torch.empty(rows, columns, dtype=dtype)
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            file.truncate(size)
            return torch.from_file(file.name, shared=True, size=rows * columns, dtype=dtype).view(rows, columns)


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


class _Reached(_Skipped):
    """The one layer that is run; its output ends the forward pass."""

    def __init__(self, block: nn.Module, hidden: Tensor | None) -> None:
        super().__init__(block)
        self.__dict__["hidden"] = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.__dict__["hidden"] is None:
            raise _Done(hidden_states)
        out = self.__dict__["block"](self.__dict__["hidden"], *args, **kwargs)
        raise _Done(out[0] if isinstance(out, tuple) else out)


@contextlib.contextmanager
def _returning_zeros(block: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Lets an MoE block return zeros; its input is appended to `seen`."""

    def zeros(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    block.forward = zeros  # type: ignore[method-assign]
    try:
        yield
    finally:
        del block.forward


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the loading bar that transformers draws for every layer."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    return next(info.dtype for info in checkpoint.tensors.values() if info.dtype.is_floating_point)
