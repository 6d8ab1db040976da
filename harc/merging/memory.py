"""The memory that a merge takes, known before it begins: what cannot fit is refused, and states get what is left."""

import re
from collections import Counter
from collections.abc import Mapping
from math import prod

import torch

from harc.memory import budget_gb

Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_BLOCK = re.compile(r"^.*?\.\d+\.")


def check_tensors(specs: Specs, models: int, batch_bytes: int, device: torch.device, given: float | None) -> None:
    """Holds the memory that is there against a merge tensor by tensor.

    Args:
        specs: dtype and shape of each tensor.
        models: that are read, the base among them.
        batch_bytes: of one model's float32 weights that are merged together, unless one tensor is larger.
        device: where tensors are merged.
        given: `memory_budget_gb`, see harc.memory.budget_gb.

    Raises:
        ValueError: too little, with what would make it fit.
    """
    name, count = max(((name, prod(shape)) for name, (_, shape) in specs.items()), key=lambda one: one[1])
    stored = specs[name][0].itemsize
    total = sum(prod(shape) for _, shape in specs.values())
    count = max(count, min(batch_bytes // 4, total))
    read = 2 * models * count * stored  # those at work, and the next ones
    worked = (models + 3) * count * 4 if device.type == "cpu" else 0  # and a sum, a mask, the result
    needed = (read + worked) / 1e9
    budget, said = budget_gb(given)
    if not budget >= needed:
        raise ValueError(
            f"{said}: merging {models} models needs about {needed:.3g} ({count:,} numbers of each at once; the largest "
            f"tensor is {name}); {'a GPU to merge on, ' if worked else ''}fewer models or that much memory makes it fit"
        )


def states_budget(specs: Specs, sources: int, device: torch.device, given: float | None) -> float:
    """What a merge on data has left for hidden states, in gigabytes.

    Taken off: each source's weights outside its layers; a layer's weights, those it is merged from, and the sums over
    tokens that the methods keep of it (Gram matrices of its linear maps, at the most). Computed in float32 on a CPU.

    given: `memory_budget_gb`, see harc.memory.budget_gb.

    Raises:
        ValueError: too little, with what would make it fit.
    """
    weights: Counter[str] = Counter()
    grams: Counter[str] = Counter()
    for name, (_, shape) in specs.items():
        found = _BLOCK.match(name)
        place = found[0] if found else ""
        weights[place] += prod(shape)
        grams[place] += prod(shape[:-2]) * shape[-1] ** 2 if found and len(shape) > 1 else 0
    outer = 4 * sources * weights.pop("", 0)
    at_work = 4 * max((2 * weights[place] + 3 * grams[place] for place in weights), default=0)
    on_host = device.type == "cpu"
    needed = (outer + at_work) / 1e9 if on_host else 0.0
    budget, said = budget_gb(given)
    if not budget >= needed:
        raise ValueError(
            f"{said}: merging {sources} models on data needs about {needed:.3g} ({outer / 1e9:.3g} for embeddings and "
            f"heads, {at_work / 1e9:.3g} for a layer and its sums); a GPU to merge on, a method that reads no data or "
            "that much memory makes it fit"
        )
    return budget - needed
