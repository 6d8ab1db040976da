"""RegMean: each linear layer closest, in least squares, to every source's outputs on that source's own inputs.

    min over W   Σ_i w_i ‖X_i (W − W_i)ᵀ‖²      W (Σ_i w_i G_i) = Σ_i w_i W_i G_i,      G_i = X_iᵀ X_i / T_i

with G_i's off-diagonals damped. X_i are the inputs the layer really received: for an expert, the tokens routed to it,
and for its down-projection its own activations. T_i counts the source's tokens, routed or not, so that an expert that a
source hardly uses is hardly shaped by it.

Jin et al. 2023, https://arxiv.org/abs/2212.09849.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merge.average import average

_RIDGE = 1e-6


def damp(gram: Float[Tensor, "*batch columns columns"], damping: float) -> Float[Tensor, "*batch columns columns"]:
    """The Gram matrix with its off-diagonal entries multiplied by `damping`."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
    damped = gram * damping
    damped.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return damped


def regmean(
    sources: Sequence[Float[Tensor, "rows columns"]],
    grams: Sequence[Float[Tensor, "columns columns"]],
    weights: Sequence[float],
    *,
    damping: float = 0.9,
    ridge: float = _RIDGE,
) -> Float[Tensor, "rows columns"]:
    """The merged weight of one linear layer from its sources' weights and Gram matrices."""
    damped = [weight * damp(gram, damping) for gram, weight in zip(grams, weights, strict=True)]
    products = [source @ gram for source, gram in zip(sources, damped, strict=True)]
    mean = average(None, sources, weights)
    return solve_normal_equations(torch.stack(damped).sum(0), torch.stack(products).sum(0), mean, ridge=ridge)


def solve_normal_equations(
    gram: Float[Tensor, "columns columns"],
    product: Float[Tensor, "rows columns"],
    mean: Float[Tensor, "rows columns"],
    *,
    ridge: float = _RIDGE,
) -> Float[Tensor, "rows columns"]:
    """Solves W gram = product in float64, with a pull of `ridge` (relative to the diagonal) towards the mean.

    Inputs that never fired, and a layer without data, so get the sources' mean.
    """
    gram, product, mean_ = gram.double(), product.double(), mean.double()
    diagonal = gram.diagonal()
    scale = torch.where(diagonal > 1e-12 * diagonal.max(), diagonal, 1.0).sqrt()
    scaled = gram / torch.outer(scale, scale)
    right = product / scale
    while True:
        ridged = scaled + ridge * torch.eye(len(scaled), dtype=torch.float64, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            break
        ridge = max(100 * ridge, 1e-12)  # rounding made a singular matrix indefinite
    # Solved for the correction of the mean, so that equal sources give themselves back.
    residual = right - (mean_ * scale) @ scaled
    correction = torch.cholesky_solve(residual.mT, factor).mT / scale
    return mean + correction.to(mean.dtype)
