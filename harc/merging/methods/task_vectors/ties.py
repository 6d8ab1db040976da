"""TIES: trim each task vector, elect a sign for each entry, average those that agree with it.

Yadav et al. 2023, https://arxiv.org/abs/2306.01708.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import WeightedSettings, setting

_BLOCK = 1 << 16  # entries whose temporaries stay in the processor's cache
_COUNTED = 1 << 20


@dataclass(frozen=True)
class ConsensusSettings(WeightedSettings):
    """What TIES, DARE-TIES and DELLA share; their default weights are the paper's for two models."""

    published_weights: ClassVar[dict[str, float]] = {"math": 0.6, "code": 0.4}

    weights: list[float] | None = setting(
        None,
        "one weight per source; by default 0.6 math and 0.4 code, as in the paper, and equal ones for other sources",
    )
    scale: float = setting(1.0, "factor on the merged task vector")


@dataclass(frozen=True)
class TiesSettings(ConsensusSettings):
    """The defaults are the paper's, which are those of Yadav et al."""

    density: float = setting(
        0.2, "share of each task vector's entries that is kept, the largest", above=0, at_most=1, tries=(0.2, 0.4, 0.7)
    )
    normalize: bool = setting(True, "divide by the weights of the sources that agree on an entry's sign")


@method("ties", label="TIES-Merging", settings=TiesSettings, reference="https://arxiv.org/abs/2306.01708")
def ties(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: TiesSettings,
) -> Float[Tensor, "*shape"]:
    """Trims each task vector to its largest entries, elects a sign for each entry, averages the vectors that agree."""
    task_vectors = [trim(source - base, settings.density) for source in sources]
    return base + settings.scale * merge_agreeing(task_vectors, weights, normalize=settings.normalize)


def trim(task_vector: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """Zeroes all but the `density` share of entries of largest magnitude; the first of equal ones are kept.

    Counting finds the smallest magnitude kept; nothing is sorted. At least one entry is kept.
    """
    return keep_largest(task_vector, max(1, int(density * task_vector.numel()))) if density < 1 else task_vector


def keep_largest(task_vector: Float[Tensor, "*shape"], count: int) -> Float[Tensor, "*shape"]:
    """Zeroes all but the `count` entries of largest magnitude; the first of equal ones are kept."""
    if count >= task_vector.numel():
        return task_vector
    if count <= 0:
        return torch.zeros_like(task_vector)
    flat = task_vector.reshape(-1)
    magnitude = flat.abs()
    threshold, missing = smallest_of_largest(magnitude, count)
    trimmed = torch.nn.functional.hardshrink(flat, threshold)  # keeps what is above it
    if threshold > 0:
        equal = (magnitude == threshold).nonzero()[:missing, 0]
        trimmed[equal] = flat[equal]
    return trimmed.view_as(task_vector)


def smallest_of_largest(values: Float[Tensor, "entries"], count: int) -> tuple[float, int]:
    """The smallest of the `count` largest values, which must not be negative, and how many of those equal it.

    A radix selection: the bit patterns of non-negative float32 numbers have the numbers' order, so that two histograms,
    of the upper and (within one bin) the lower 16 bits, find the value in linear time however many are equal.
    """
    blocks = values.view(torch.int32).split(_COUNTED)
    upper_bin, count = _bin_from_above((block >> 16 for block in blocks), count)
    lower_bin, count = _bin_from_above((block[block >> 16 == upper_bin] & 0xFFFF for block in blocks), count)
    return float(torch.tensor(upper_bin << 16 | lower_bin, dtype=torch.int32).view(torch.float32)), count


def merge_agreeing(
    task_vectors: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    normalize: bool,
    votes: Sequence[float] | None = None,
) -> Float[Tensor, "*shape"]:
    """Adds up, entry by entry, the weighted task vectors whose sign is the elected one.

    Elected is the sign of the sum weighted by `votes` (the weights, unless given), plus on a draw.
    normalize: divide by the sum of the weights that took part.
    """
    merged = torch.empty_like(task_vectors[0])
    votes = weights if votes is None else votes
    flat = zip(*(vector.reshape(-1).split(_BLOCK) for vector in (merged, *task_vectors)), strict=True)
    for target, *parts in flat:
        elected = parts[0] * votes[0]
        for part, vote in zip(parts[1:], votes[1:], strict=True):
            elected.add_(part, alpha=vote)
        elected.sign_().add_(0.5).sign_()
        target.zero_()
        divisor = torch.zeros_like(target)
        for part, weight in zip(parts, weights, strict=True):
            agreeing = (part * elected).clamp_(min=0)
            target.add_(agreeing, alpha=weight)
            if normalize:
                divisor.add_(agreeing.sign_(), alpha=weight)
        target.mul_(elected)
        if normalize:
            target.div_(divisor + (divisor == 0))
    return merged


def _bin_from_above(blocks: Iterable[Tensor], count: int) -> tuple[int, int]:
    """The 16-bit value that the `count`-th largest has, and its place among the equal ones."""
    counts = torch.zeros(1 << 16, dtype=torch.int64)
    for block in blocks:
        counts += torch.bincount(block, minlength=1 << 16).cpu()
    above = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(above, count))
    return len(above) - 1 - position, count - (int(above[position - 1]) if position else 0)
