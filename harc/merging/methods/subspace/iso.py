"""Iso-C and Iso-CTS: the merged task matrix with all singular values equal to their mean.

    Iso-C     Σ_i τ_i = U S Vᵀ                            θ = θ_base + α mean(S) U Vᵀ
    Iso-CTS   k leading directions of Σ_i τ_i, and of each τ_i, without them, its (r − k) / N leading ones:
              [U_1 … U_N U_c], [S_1 … S_N S_c], [V_1 … V_N V_c]
              θ = θ_base + α mean(S) polar(U) polar(V)ᵀ

r is the number of singular values; k is `common` of it, or the next number that leaves every source as many directions.
Tensors that are no linear layer of a block get the mean of the task vectors, times α.

Marczak et al. 2025, https://arxiv.org/abs/2502.04959.
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
class IsoCSettings(ScaledSettings):
    """Iso-C has no weights; its authors choose the scale on validation data."""

    scale: float = setting(
        1.0,
        "α, factor on the merged task vector; its authors choose it on validation data",
        tries=(0.5, 1.0, 1.5),
    )


@dataclass(frozen=True)
class IsoCtsSettings(IsoCSettings):
    """The share of the common subspace is the paper's."""

    common: float = setting(
        0.8, "share of the directions that are the sum's; the rest are the sources' own", at_least=0, at_most=1
    )


@method(
    "iso_c",
    label="Iso-C",
    settings=IsoCSettings,
    reference="https://arxiv.org/abs/2502.04959",
    kind="batch",
    elsewhere=scaled_mean,
)
def iso_c(
    base: Float[Tensor, "*batch rows columns"],
    sources: Sequence[Float[Tensor, "*batch rows columns"]],
    weights: Sequence[float],
    settings: IsoCSettings,
) -> Float[Tensor, "*batch rows columns"]:
    """Adds the task matrices up and gives the sum's singular values their mean, all the same."""
    left, values, right = torch.linalg.svd(_sum(base, sources), full_matrices=False)
    return base + (settings.scale * values.mean(dim=-1))[..., None, None] * (left @ right)


@method(
    "iso_cts",
    label="Iso-CTS",
    settings=IsoCtsSettings,
    reference="https://arxiv.org/abs/2502.04959",
    kind="batch",
    elsewhere=scaled_mean,
)
def iso_cts(
    base: Float[Tensor, "*batch rows columns"],
    sources: Sequence[Float[Tensor, "*batch rows columns"]],
    weights: Sequence[float],
    settings: IsoCtsSettings,
) -> Float[Tensor, "*batch rows columns"]:
    """As Iso-C, with the sum's weakest directions replaced by each source's strongest outside the others."""
    own = own_directions(min(base.shape[-2:]), len(sources), settings.common)
    left, value, right = torch.linalg.svd(_sum(base, sources), full_matrices=False)
    common = value.shape[-1] - own * len(sources)
    left, value, right = left[..., :common], value[..., :common], right[..., :common, :]
    lefts, values, rights = [], [], []
    for source in sources if own else ():
        task_matrix = source - base
        outside = task_matrix - left @ (left.mT @ task_matrix)
        own_left, own_value, own_right = torch.linalg.svd(outside, full_matrices=False)
        lefts.append(own_left[..., :own])
        values.append(own_value[..., :own])
        rights.append(own_right[..., :own, :])
    directions = polar(torch.cat([*lefts, left], dim=-1)) @ polar(torch.cat([*rights, right], dim=-2))
    mean = torch.cat([*values, value], dim=-1).mean(dim=-1)
    return base + (settings.scale * mean)[..., None, None] * directions


def own_directions(rank: int, sources: int, common: float) -> int:
    """How many directions each source has of its own, so that all have as many and the rest are the sum's."""
    return min(round((rank - int(rank * common)) / sources), rank // sources)


def _sum(base: Tensor, sources: Sequence[Tensor]) -> Tensor:
    return torch.stack([source - base for source in sources]).sum(dim=0)
