"""One layer of a model in memory at a time: what Fisher and RegMean run their sources with.

The model is built without weights; a layer's are read from the checkpoint when it is entered and dropped after it.
Published tensors become the model's own parameters (fused experts among them) and back by transformers' own conversion
mapping, so no architecture is named here. A layer is run by the model's own forward with every other layer passing its
input through, so that masks, positions and layer types are the model's affair.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from harc.checkpoint import Checkpoint, CheckpointError


class LayerwiseModel:
    """A causal language model whose layers are read one at a time.

    keys[index]: published names of layer `index`'s tensors; outer_keys: of the rest (embeddings, last norm, head),
    which are read on construction and stay; unused_keys: of what the model class makes no use of.
    prefix: what the names of layers' parameters start with, before the index.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        config = AutoConfig.from_pretrained(checkpoint.folder)
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        self.decoder = self.model.get_decoder()
        self.layers: nn.ModuleList = self.decoder.layers
        self.prefix = next(name for name, module in self.model.named_modules() if module is self.layers) + "."
        self._restore_buffers()
        self._find_keys()
        self._set(self.read(None))
        head, embeddings = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if head is not None and head.weight.is_meta and config.tie_word_embeddings:
            head.weight = embeddings.weight
        waiting = [
            name for name, tensor in self.model.state_dict().items() if tensor.is_meta and self._layer(name) is None
        ]
        if waiting:
            raise CheckpointError(f"{checkpoint.source}: no tensor for the model's {waiting[0]}")
        self._active: int | None = None
        self._given: Tensor | None = None
        self._seen: Any = None
        for index, layer in enumerate(self.layers):
            layer.forward = self._pass_or_run(index, layer.forward)

    def __len__(self) -> int:
        return len(self.layers)

    @contextmanager
    def loaded(self, index: int) -> Iterator[dict[str, Tensor]]:
        """Puts a layer's weights into the model for the length of the block; yields them by parameter name."""
        tensors = self.read(index)
        self._set(tensors)
        try:
            yield tensors
        finally:
            self._set({name: tensor.to("meta") for name, tensor in tensors.items()})

    def read(self, index: int | None) -> dict[str, Tensor]:
        """Reads a layer's tensors (None: those outside the layers) as the model's parameters, by their names there."""
        converters: dict[str, Any] = {}
        for key in self.outer_keys if index is None else self.keys[index]:
            name, pattern = self._targets[key]
            tensor = self.checkpoint.read(key).to(self.device)
            tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            if pattern is None:
                converter = converters.setdefault(name, WeightRenaming(key, name))
            else:
                converter = converters.setdefault(name, deepcopy(self._converters[pattern]))
            converter.add_tensor(name, key, key if pattern is None else pattern, tensor)
        tensors = {}
        for name, converter in converters.items():
            for target, value in converter.convert(name, model=self.model, config=self.model.config).items():
                tensors[target] = value[0] if isinstance(value, list) else value
        return tensors

    def published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns tensors shaped like parameters, by parameter name, into tensors by published name."""
        stored = {name: tensor for name, tensor in tensors.items() if name in self.checkpoint}  # fused on disk as well
        others = {name: tensor for name, tensor in tensors.items() if name not in stored}
        named = {**stored, **(revert_weight_conversion(self.model, others) if others else {})}
        unknown = next((name for name in named if name not in self.checkpoint), None)
        if unknown is not None:
            raise CheckpointError(f"{self.checkpoint.source}: transformers would save {unknown}, which is not in it")
        return named

    def embed(self, ids: Int64[Tensor, "batch length"], mask: Int64[Tensor, "batch length"]) -> Tensor:
        """The input of the first layer."""
        return self._run(self.decoder, ids, mask, None, None)

    def layer(
        self, index: int, ids: Tensor, mask: Tensor, hidden: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "batch length hidden"]:
        """The output of a (loaded) layer on its input `hidden`."""
        self._run(self.decoder, ids, mask, index, hidden)
        return self._seen

    def final(self, ids: Tensor, mask: Tensor, hidden: Tensor) -> Float[Tensor, "batch length hidden"]:
        """The head's input, from the output of the last layer."""
        return self._run(self.decoder, ids, mask, len(self), hidden).last_hidden_state

    def logits(self, ids: Tensor, mask: Tensor, hidden: Tensor) -> Float[Tensor, "batch length vocabulary"]:
        """The logits, from the output of the last layer."""
        return self._run(self.model, ids, mask, len(self), hidden).logits

    def outer_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters outside the layers, each once."""
        return {name: value for name, value in self.model.named_parameters() if self._layer(name) is None}

    def _run(self, module: nn.Module, ids: Tensor, mask: Tensor, active: int | None, given: Tensor | None) -> Any:
        self._active, self._given, self._seen = active, given, None
        try:
            output = module(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
        finally:
            self._given = None
        return self._seen if active is None else output

    def _pass_or_run(self, index: int, forward: Any) -> Any:
        last = len(self.layers) - 1

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._active is None:
                self._seen = hidden_states if index == 0 else self._seen
            elif self._active == index:
                self._seen = forward(self._given, *args, **kwargs)
                self._seen = self._seen[0] if isinstance(self._seen, tuple) else self._seen
            elif self._active > last and index == last:
                return self._given
            return hidden_states

        return run

    def _layer(self, name: str) -> int | None:
        number = name.removeprefix(self.prefix).split(".")[0] if name.startswith(self.prefix) else ""
        return int(number) if number.isdigit() else None

    def _find_keys(self) -> None:
        mapping = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._converters = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        self._targets: dict[str, tuple[str, str | None]] = {}
        self.keys: dict[int, list[str]] = defaultdict(list)
        self.outer_keys: list[str] = []
        self.unused_keys: list[str] = []
        state = self.model.state_dict()
        for key in self.checkpoint:
            name, pattern = rename_source_key(key, renamings, converters, self.model.base_model_prefix, state)
            if name not in state and key in state:
                name, pattern = key, None
            if name not in state:
                self.unused_keys.append(key)
                continue
            self._targets[key] = (name, pattern)
            index = self._layer(name)
            (self.outer_keys if index is None else self.keys[index]).append(key)

    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            if leaf in module._buffers:
                module._buffers[leaf] = tensor
            else:
                module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)

    def _restore_buffers(self) -> None:
        """Computes the buffers that no checkpoint holds (rotary frequencies), which the meta device left empty."""
        kept = self.model.state_dict()
        for path, module in self.model.named_modules():
            names = [n for n in module._buffers if module._buffers[n] is not None and f"{path}.{n}" not in kept]
            if names:
                for name in names:
                    module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
                self.model._init_weights(module)
