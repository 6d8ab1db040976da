"""Where a checkpoint keeps its experts: every tensor, or part of one, that belongs to one expert of a layer.

Found through the model class of transformers, without a list of architectures. In the block of a router: a module with
a parameter of three dimensions whose first counts the experts holds them, and so does a list of as many modules; of the
router, what has a dimension of that length; elsewhere, vectors of that length (a selection bias).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harc.checkpoint import Checkpoint, CheckpointError
from harc.models.empty import empty_model, stored_dtype
from harc.models.parameters import ParameterReader
from harc.models.routers import Router, find_routers


@dataclass(frozen=True)
class LayerExperts:
    """One layer's experts in the published layout.

    layer: the decoder layer; count: its number of experts.
    router: published name of the router's weight.
    one_each: lists of published names, an expert a name, in order; a list for each kind of tensor.
    of_all: published names of tensors of all experts (the router's too), with the dimension that counts them.
    """

    layer: int
    count: int
    router: str
    one_each: list[list[str]] = field(default_factory=list)
    of_all: dict[str, int] = field(default_factory=dict)

    def kinds(self, checkpoint: Checkpoint) -> list[list[str]]:
        """What tells experts apart, for `read`: the router's rows, and every kind of matrix."""
        fused = [[name] for name in self.of_all if name != self.router and len(checkpoint.tensors[name].shape) > 2]
        return [[self.router], *fused, *(keys for keys in self.one_each if len(checkpoint.tensors[keys[0]].shape) > 1)]

    def read(self, checkpoint: Checkpoint, kind: list[str]) -> Float[Tensor, "experts entries"]:
        """Reads one kind, an expert a row."""
        if kind in self.one_each:
            return torch.stack([checkpoint.read(name).reshape(-1) for name in kind])
        return checkpoint.read(kind[0]).movedim(self.of_all[kind[0]], 0).reshape(self.count, -1)


def find_experts(checkpoint: Checkpoint) -> list[LayerExperts]:
    """Finds the experts of every MoE layer; headers alone are read.

    Raises:
        NoRouterError: a model without routers, or with routers that cannot be told from its class.
        CheckpointError: experts that do not lie in tensors of their own, naming the tensor.
    """
    model = empty_model(checkpoint, stored_dtype(checkpoint))
    reader = ParameterReader(checkpoint, model)
    return [_layer(checkpoint, model, reader, router) for router in find_routers(model).values()]


def _layer(checkpoint: Checkpoint, model: Any, reader: ParameterReader, router: Router) -> LayerExperts:
    found = LayerExperts(router.layer, len(router.weight), router.checkpoint_key)
    for names in _parameters(model.get_submodule(router.moe_name), router, found.count):
        if len(names) == found.count:  # modules of their own
            found.one_each.append([reader.kinds(name)[0][0] for name in names])
            continue
        for keys in reader.kinds(names[0]):
            shape = checkpoint.tensors[keys[0]].shape
            if len(keys) == found.count:
                found.one_each.append(keys)
            elif len(keys) == 1 and found.count in shape:
                found.of_all[keys[0]] = shape.index(found.count)
            else:
                raise CheckpointError(
                    f"{checkpoint.tensors[keys[0]].file}: {keys[0]} of shape {shape} holds the {found.count} experts "
                    f"of layer {router.layer} in no dimension of their own: they cannot be put in another order"
                )
    if len(found.kinds(checkpoint)) < 2:
        raise CheckpointError(
            f"{checkpoint.source}: layer {router.layer} has no tensors that are told to be its {found.count} experts'"
        )
    return found


def _parameters(block: nn.Module, router: Router, count: int) -> Iterator[list[str]]:
    """Names of parameters and buffers of all experts, one a list, or as many as there are experts."""
    for path, module in block.named_modules(prefix=router.moe_name):
        if isinstance(module, nn.ModuleList) and len(module) == count:
            yield from ([f"{path}.{e}.{leaf}" for e in range(count)] for leaf, _ in module[0].named_parameters())
            continue
        held = {**module._parameters, **module._buffers}
        tensors = {leaf: tensor for leaf, tensor in held.items() if tensor is not None}
        matrices = {leaf: len(tensor) for leaf, tensor in tensors.items() if tensor.dim() > 2}
        fused = count in matrices.values()
        if fused and (fewer := next((leaf for leaf, held in matrices.items() if held != count), None)):
            raise CheckpointError(
                f"{path}.{fewer} holds {matrices[fewer]} experts, the router chooses among {count}: some compute "
                "nothing of their own, and which they are goes by their place"
            )
        routes = f"{path}.".startswith(f"{router.name}.")
        for leaf, tensor in tensors.items():
            each = fused and tensor.dim() > 0 and len(tensor) == count
            vector = tensor.numel() == count and not isinstance(module, nn.Linear)
            if each or vector or (routes and count in tensor.shape):
                yield [f"{path}.{leaf}"]
