"""Published tensors as a model's own parameters, and back, by transformers' own conversion mapping.

A checkpoint holds an expert's matrices one a tensor; the model holds a layer's experts in one. No architecture is named
here. Experts are read one after the other into the parameter they belong to, so that a layer is in memory once.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from harc.checkpoint import Checkpoint, CheckpointError


class ParameterReader:
    """Reads a checkpoint's tensors as the parameters (and buffers) of a model that may be on the meta device.

    Attributes: names, every parameter the checkpoint holds; unused, published tensors the model class has no use for.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.checkpoint, self.model = checkpoint, model
        self.unused: list[str] = []
        self._sources: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._converters = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state = model.state_dict()
        for key in checkpoint:
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
            if name not in state and key in state:
                name, pattern = key, None
            if name in state:
                self._sources[name].append((key, pattern))
            else:
                self.unused.append(key)
        self.names = list(self._sources)

    def keys(self, chosen: Callable[[str], bool]) -> list[str]:
        """The published names of what the chosen parameters are made of."""
        return [key for name in self.names if chosen(name) for key, _ in self._sources[name]]

    def kinds(self, name: str) -> list[list[str]]:
        """The published names of what a parameter is made of, a list for each kind (gate and up, say), in order."""
        kinds: dict[str | None, list[str]] = defaultdict(list)
        for key, pattern in self._sources.get(name, ()):
            kinds[pattern].append(key)
        return list(kinds.values())

    def check_shapes(self) -> None:
        """Holds tensors that are parameters as they are against the model; fused ones are held when they are read.

        Raises:
            CheckpointError: another shape, naming file and tensor.
        """
        for name, expected in self.model.state_dict().items():
            key, pattern = next(iter(self._sources.get(name, ())), ("", ""))
            if key and pattern is None and (info := self.checkpoint.tensors[key]).shape != tuple(expected.shape):
                raise CheckpointError(
                    f"{info.file}: tensor {key} has shape {info.shape}, {tuple(expected.shape)} in the model that "
                    f"{self.checkpoint.folder / 'config.json'} describes; are they of one model?"
                )

    def bytes(self, chosen: Callable[[str], bool], dtype: torch.dtype) -> int:
        """What the chosen parameters take in memory in a floating-point dtype, in bytes."""
        infos = [self.checkpoint.tensors[key] for key in self.keys(chosen)]
        return sum(
            prod(info.shape) * (dtype if info.dtype.is_floating_point else info.dtype).itemsize for info in infos
        )

    def read(
        self, chosen: Callable[[str], bool], dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields the chosen parameters, by name.

        Raises:
            CheckpointError: tensors that cannot be read, or that do not make the model's parameter.
        """
        for name in filter(chosen, self.names):
            for target, value in self._read(name, dtype, device).items():
                expected = tuple(self.model.get_parameter_or_buffer(target).shape)
                if tuple(value.shape) != expected:
                    raise CheckpointError(
                        f"{self.checkpoint.source}: {target} would have shape {tuple(value.shape)}, not {expected}"
                    )
                yield target, value

    def keys_of(self, name: str) -> list[str]:
        """The published names of what one parameter is made of."""
        return [key for key, _ in self._sources.get(name, ())]

    def experts(self, name: str) -> dict[int, list[str]] | None:
        """The published names of each expert's share of a parameter; None unless it is stored one key an expert."""
        sources = self._sources.get(name, [])
        pattern = sources[0][1] if sources else None
        if pattern is None or not _by_expert(self._converters[pattern]):
            return None
        keys: dict[int, list[str]] = defaultdict(list)
        for key, part in sources:
            found = re.search(re.escape(part or "").replace(r"\.\*\.", r"\.(\d+)\."), key)
            if found is None or not found.groups():
                return None
            keys[int(found[1])].append(key)
        return dict(keys)

    def read_expert(self, name: str, expert: int) -> Tensor:
        """One expert's share of a parameter that is stored one key an expert, as it is stored.

        Raises:
            CheckpointError: tensors that are missing, or do not make the parameter.
        """
        keys = set((self.experts(name) or {}).get(expert, ()))
        tensors = [(key, part, self.checkpoint.read(key)) for key, part in self._sources[name] if key in keys]
        if not tensors:
            raise CheckpointError(f"{self.checkpoint.source}: no tensor for expert {expert} of {name}")
        return self._convert(name, tensors)[name][0]

    def published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns tensors shaped like parameters, by parameter name, into tensors by published name.

        Raises:
            CheckpointError: the checkpoint has no tensor of a name that transformers would save.
        """
        stored = {name: tensor for name, tensor in tensors.items() if name in self.checkpoint}  # fused on disk as well
        others = {name: tensor for name, tensor in tensors.items() if name not in stored}
        named = {**stored, **(revert_weight_conversion(self.model, others) if others else {})}
        unknown = next((name for name in named if name not in self.checkpoint), None)
        if unknown is not None:
            raise CheckpointError(f"{self.checkpoint.source}: transformers would save {unknown}, which is not in it")
        return named

    def _read(self, name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        def fetch(key: str) -> Tensor:
            tensor = self.checkpoint.read(key)
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        sources = self._sources[name]
        pattern = sources[0][1]
        if pattern is None:
            return {name: fetch(sources[0][0])}
        if not _by_expert(self._converters[pattern]):
            return self._convert(name, [(key, part, fetch(key)) for key, part in sources])
        lists = dict(zip(dict.fromkeys(part for _, part in sources), self.kinds(name), strict=True))
        whole: dict[str, Tensor] = {}
        if len({len(keys) for keys in lists.values()}) != 1:
            counts = ", ".join(f"{len(keys)} of {part}" for part, keys in lists.items())
            raise CheckpointError(f"{self.checkpoint.source}: {name} is made of as many tensors of each kind; {counts}")
        for expert, keys in enumerate(zip(*lists.values(), strict=True)):
            tensors = [(key, part, fetch(key)) for part, key in zip(lists, keys, strict=True)]
            for target, value in self._convert(name, tensors).items():
                if not expert:
                    whole[target] = value.new_empty(len(next(iter(lists.values()))), *value.shape[1:])
                whole[target][expert] = value[0]
        return whole

    def _convert(self, name: str, tensors: list[tuple[str, str | None, Tensor]]) -> dict[str, Tensor]:
        pattern = tensors[0][1]
        assert pattern is not None
        converter = deepcopy(self._converters[pattern])
        for key, part, tensor in tensors:
            converter.add_tensor(name, key, part or key, tensor)  # type: ignore[arg-type]  # takes tensors as well
        try:
            found: dict[str, Any] = converter.convert(name, model=self.model, config=self.model.config)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint.source}: {name} cannot be made: {error}") from error
        return {target: value[0] if isinstance(value, list) else value for target, value in found.items()}


def _by_expert(converter: WeightConverter) -> bool:
    """Whether a conversion stacks experts and then treats each alone."""
    first, *rest = converter.operations
    if not isinstance(first, MergeModulelist) or first.dim != 0:
        return False
    return all(
        (isinstance(op, Concatenate) and op.dim > 0)
        or (isinstance(op, Transpose) and min(op.dim0, op.dim1) > 0 and not op.check_dims)
        for op in rest
    )
