"""SCE: select the entries that vary most between task vectors, weight each by its energy, erase minority signs.

Wan et al. 2024 (FuseChat), https://arxiv.org/abs/2408.07990.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import SceSettings
from harc.merge.ties import merge_agreeing, smallest_of_largest


@method("sce", SceSettings, reference="https://arxiv.org/abs/2408.07990")
def sce(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    density: float = 0.1,
) -> Float[Tensor, "*shape"]:
    """The base plus the weighted mean of the selected entries; `weights` play no part, SCE computes its own.

    Signs are elected by the plain sum of the task vectors, as in the paper; a vector's weight is its mean square.
    """
    task_vectors = [source - base for source in sources]
    if density < 1:
        selected = select(task_vectors, density)
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
