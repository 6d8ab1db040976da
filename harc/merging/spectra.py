"""What the methods that work on singular values share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.settings import MergeSettings, setting


@dataclass(frozen=True)
class ScaledSettings(MergeSettings):
    """The settings of a method without weights whose result is scaled."""

    scale: float = setting(1.0, "α, factor on the merged task vector")


def scaled_mean(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: ScaledSettings,
) -> Float[Tensor, "*shape"]:
    """θ_base + α · mean of the task vectors: what becomes of tensors that have no singular values of their own."""
    merged = base.clone()
    for source in sources:
        merged.add_(source - base, alpha=settings.scale / len(sources))
    return merged


def polar(matrix: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """U Vᵀ of the singular value decomposition U S Vᵀ: the nearest matrix whose columns (or rows) are orthonormal."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
