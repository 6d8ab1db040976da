"""TIES: trim each task vector, elect a sign for each entry, average those that agree with it.

Yadav et al. 2023, https://arxiv.org/abs/2306.01708.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import TiesSettings


@method("ties", TiesSettings, reference="https://arxiv.org/abs/2306.01708")
def ties(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    density: float = 0.2,
    normalize: bool = True,
    scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """The base plus the sign-consensus merge of the trimmed task vectors."""
    task_vectors = [trim(source - base, density) for source in sources]
    return base + scale * merge_agreeing(task_vectors, weights, normalize=normalize)


def trim(task_vector: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """Zeroes all but the `density` share of entries of largest magnitude; the first of equal ones are kept.

    A selection finds the smallest magnitude kept; nothing is sorted. At least one entry is kept.
    """
    if density >= 1 or task_vector.numel() == 0:
        return task_vector
    magnitude = task_vector.abs().reshape(-1)
    kept = max(1, int(density * magnitude.numel()))
    threshold = _kth_largest(magnitude, kept)
    mask = magnitude > threshold
    missing = kept - int(mask.sum())
    mask[(magnitude == threshold).nonzero()[:missing, 0]] = True
    return task_vector * mask.view_as(task_vector)


def merge_agreeing(
    task_vectors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], *, normalize: bool
) -> Float[Tensor, "*shape"]:
    """Adds up, entry by entry, the weighted task vectors whose sign is that of the weighted sum (plus on a draw).

    normalize: divide by the sum of the weights that took part.
    """
    weighted = [weight * task_vector for task_vector, weight in zip(task_vectors, weights, strict=True)]
    elected = torch.where(sum(weighted[1:], weighted[0]) >= 0, 1.0, -1.0)
    merged, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
    for part, weight in zip(weighted, weights, strict=True):
        agrees = part * elected > 0
        merged += part * agrees
        if normalize:
            divisor.add_(agrees, alpha=weight)
    return merged.div_(divisor.masked_fill_(divisor == 0, 1)) if normalize else merged


def _kth_largest(values: Float[Tensor, "entries"], k: int) -> float:
    if values.device.type == "cpu":  # numpy's selection is several times as fast as torch's
        return float(np.partition(values.numpy(), len(values) - k)[len(values) - k])
    return float(values.kthvalue(len(values) - k + 1).values)
