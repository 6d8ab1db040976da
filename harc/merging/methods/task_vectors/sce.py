"""SCE: select the entries that vary most between task vectors, weight each by its energy, erase minority signs.

Wan et al. 2024 (FuseChat), https://arxiv.org/abs/2408.07990.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harc.merging.methods.task_vectors.ties import merge_agreeing, smallest_of_largest
from harc.merging.registry import method
from harc.merging.settings import MergeSettings, setting


@dataclass(frozen=True)
class SceSettings(MergeSettings):
    """SCE computes its weights itself; the default density is that of Wan et al."""

    density: float = setting(
        0.1,
        "share of a tensor's entries that is merged, those that vary most between the task vectors",
        above=0,
        at_most=1,
        published=(1.0,),
        tries=(0.1, 0.4, 1.0),
    )


@method("sce", label="SCE", settings=SceSettings, reference="https://arxiv.org/abs/2408.07990")
def sce(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: SceSettings,
) -> Float[Tensor, "*shape"]:
    """Selects the entries that vary most, weighs the sources by their energy, erases the minority sign.

    Signs are elected by the plain sum of the task vectors, as in SCE's paper; a vector's weight is its mean square.
    """
    task_vectors = [source - base for source in sources]
    if settings.density < 1:
        selected = select(task_vectors, settings.density)
        task_vectors = [task_vector * selected for task_vector in task_vectors]
    energy = [float(torch.linalg.vector_norm(task_vector)) ** 2 for task_vector in task_vectors]
    if not sum(energy) > 0:
        return base.clone()
    shares = [value / sum(energy) for value in energy]
    return base + merge_agreeing(task_vectors, shares, normalize=True, votes=[1.0] * len(shares))


def select(task_vectors: Sequence[Float[Tensor, "*shape"]], density: float) -> Bool[Tensor, "*shape"]:
    """The `density` share of the entries on which the task vectors differ at all: those of largest variance."""
    # From the first one: where all are equal the variance is zero, not rounding's.
    offsets = [task_vector - task_vectors[0] for task_vector in task_vectors]
    mean = torch.zeros_like(offsets[0])
    for offset in offsets[1:]:
        mean.add_(offset, alpha=1 / len(offsets))
    variance = torch.zeros_like(mean)
    for offset in offsets:
        difference = offset - mean
        variance.addcmul_(difference, difference, value=1 / len(task_vectors))
    flat = variance.reshape(-1)
    count = int(density * torch.count_nonzero(flat))
    if not count:
        return torch.zeros_like(variance, dtype=torch.bool)
    threshold, missing = smallest_of_largest(flat, count)
    mask = flat > threshold
    mask[(flat == threshold).nonzero()[:missing, 0]] = True
    return mask.view_as(variance)
