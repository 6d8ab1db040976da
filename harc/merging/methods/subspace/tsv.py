"""TSV-Merge: each task matrix cut to its share of the rank, and the singular vectors of all made orthogonal.

    τ_i ≈ U_i S_i V_iᵀ, the r / N largest of r singular values;   Û = polar([U_1 … U_N]),  V̂ = polar([V_1 … V_N])
    θ = θ_base + α Û diag(S_1 … S_N) V̂ᵀ

polar(M) is the nearest matrix with orthonormal columns, P Qᵀ of M's decomposition P D Qᵀ. Tensors that are no linear
layer of a block get the mean of the task vectors, times α. At least one singular value a source is kept, which matters
where a layer has fewer rows than there are sources; this is our reading.

Gargiulo et al. 2024, https://arxiv.org/abs/2412.00081.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import setting
from harc.merging.spectra import ScaledSettings, polar, scaled_mean


@dataclass(frozen=True)
class TsvSettings(ScaledSettings):
    """TSV-Merge has no weights; the default is the paper's."""

    scale: float = setting(1.0, "α, factor on the merged task vector; 1 in the paper, which needs no other")


@method(
    "tsv",
    label="TSV-Merge",
    settings=TsvSettings,
    reference="https://arxiv.org/abs/2412.00081",
    kind="batch",
    elsewhere=scaled_mean,
)
def tsv(
    base: Float[Tensor, "*batch rows columns"],
    sources: Sequence[Float[Tensor, "*batch rows columns"]],
    weights: Sequence[float],
    settings: TsvSettings,
) -> Float[Tensor, "*batch rows columns"]:
    """Cuts each task matrix to its share of the rank and makes the singular vectors of all sources orthogonal."""
    rank = max(1, min(base.shape[-2:]) // len(sources))
    lefts, values, rights = [], [], []
    for source in sources:
        left, value, right = torch.linalg.svd(source - base, full_matrices=False)
        lefts.append(left[..., :rank])
        values.append(value[..., :rank])
        rights.append(right[..., :rank, :])
    left, right = polar(torch.cat(lefts, dim=-1)), polar(torch.cat(rights, dim=-2))
    return base + settings.scale * (left * torch.cat(values, dim=-1)[..., None, :]) @ right
