"""Karcher mean: the point of the sphere from which the sources' directions lie in balance; for two sources, SLERP.

    m with Σ_i w_i log_m(u_i) = 0,  u_i = θ_i / ‖θ_i‖,      θ = (Σ_i w_i ‖θ_i‖) · m

found by steps along the mean of the logarithms, from the normalised mean. m lies in the span of the u_i, so that the
steps are taken on its coefficients, by the u_i's inner products alone. Two sources of weights 1 − t and t give SLERP at
t; their norms are interpolated as well. Each tensor is one point, and where it holds several experts' matrices, each
matrix. As mergekit's method of this name.

Karcher 1977, https://doi.org/10.1002/cpa.3160300502; SLERP: Shoemake 1985, https://doi.org/10.1145/325165.325242.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import WeightedSettings, setting

_STEPS, _TOLERANCE = 100, 1e-7  # radians: what inner products in float64 can tell apart
_COUNTED = 1 << 20


@dataclass(frozen=True)
class KarcherSettings(WeightedSettings):
    """Weights alone; for two sources they are SLERP's 1 − t and t."""

    weights: list[float] | None = setting(None, "one weight per source, equal by default; for two, SLERP's 1 − t and t")


@method(
    "karcher",
    label="Karcher Mean",
    settings=KarcherSettings,
    reference="https://doi.org/10.1002/cpa.3160300502",
    uses_base=False,
)
def karcher(
    base: None,
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: KarcherSettings,
) -> Float[Tensor, "*shape"]:
    """The mean direction of the sources on the sphere, at their mean norm; for two sources, SLERP."""
    shape = sources[0].shape
    matrices = shape[:-2].numel() if len(shape) > 2 else 1
    flat = [source.reshape(matrices, -1) for source in sources]
    merged = torch.empty_like(flat[0])
    for target, *points in zip(merged, *flat, strict=True):
        shares = coefficients(inner_products(points), weights)
        # As a correction of the first source: equal sources give themselves back, without rounding.
        torch.mul(points[0], sum(shares), out=target)
        for point, share in zip(points[1:], shares[1:], strict=True):
            target.add_(point - points[0], alpha=share)
    return merged.reshape(shape)


def inner_products(points: Sequence[Float[Tensor, "entries"]]) -> Float[Tensor, "sources sources"]:
    """All inner products of the points, in float64, on the CPU."""
    gram = torch.zeros(len(points), len(points), dtype=torch.float64)
    for parts in zip(*(point.split(_COUNTED) for point in points), strict=True):
        stacked = torch.stack(parts).double()
        gram += (stacked @ stacked.mT).cpu()
    return gram


def coefficients(gram: Float[Tensor, "sources sources"], weights: Sequence[float]) -> list[float]:
    """The shares a_i of the Karcher mean Σ a_i θ_i, from the inner products of the θ_i; a zero θ_i has no direction."""
    norms = gram.diagonal().sqrt()
    pointing = (norms > 0).nonzero()[:, 0]
    shares = torch.zeros_like(norms)
    if not len(pointing):
        return shares.tolist()
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    length = float(share @ norms)
    cosines = gram[pointing][:, pointing] / torch.outer(norms[pointing], norms[pointing])
    balance = share[pointing] / share[pointing].sum()
    shares[pointing] = length * _balanced(cosines, balance) / norms[pointing]
    return shares.tolist()


def _balanced(cosines: Tensor, weights: Tensor) -> Tensor:
    """The coefficients of m over the unit vectors u_i."""
    mean = weights.clone()
    if mean @ cosines @ mean < _TOLERANCE**2:  # opposite directions: every great circle through them is as short
        mean = torch.zeros_like(weights)
        mean[0] = 1
    mean /= (mean @ cosines @ mean).sqrt()
    for _ in range(_STEPS):
        dots = (cosines @ mean).clamp(-1, 1)
        angles = torch.arccos(dots)
        stretched = weights * torch.where(angles > _TOLERANCE, angles / torch.sin(angles).clamp(min=_TOLERANCE), 1)
        tangent = stretched - (stretched @ dots) * mean
        size = (tangent @ cosines @ tangent).clamp(min=0).sqrt()
        if size < _TOLERANCE:
            break
        mean = torch.cos(size) * mean + torch.sin(size) * tangent / size
        mean /= (mean @ cosines @ mean).sqrt()
    return mean
