"""The identity Hessian, solved directly: ( Σ_i G̃_i ) Wᵀ = Σ_i G̃_i W_iᵀ, G_i = E[x xᵀ], as RegMean does.

Target logits z add α E[(z − W_i x) xᵀ] to the right-hand side, as in harc.solver.operator.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.solver.operator import Reduce, block_tokens, token_blocks


def solve_identity(
    features: Sequence[Tensor],
    routers: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    start: Tensor,
    coupling: float,
    damping: float,
    dtype: torch.dtype,
    reduce: Reduce | None,
    fixed: int = 0,
) -> tuple[Tensor, float]:
    """The weight (float64) and its relative residual; arguments as of `solve_router` and the operator."""
    hidden = start.shape[1]
    matrix = torch.zeros(hidden, hidden, dtype=torch.float64, device=features[0].device)
    start = start.to(matrix.device)
    residual, rhs = torch.zeros_like(start), torch.zeros_like(start)
    free = hidden - fixed
    origin = torch.zeros_like(start)
    origin[:, free:] = start[:, free:]
    for index, (x, router) in enumerate(zip(features, routers, strict=True)):
        gram = gram_matrix(x, dtype, reduce)
        if not torch.isfinite(gram).all():
            raise ValueError(f"domain {index}: NaN or Inf in the features")
        gram = coupling * gram + damping * torch.diag(gram.diagonal())
        matrix += gram
        residual += (router.to(start) - start) @ gram
        rhs += (router.to(start) - origin) @ gram
        if targets is not None:
            shift = coupling * _logit_shift(x, router.to(x.device, dtype), targets[index], dtype, reduce)
            residual += shift
            rhs += shift
    matrix, residual, rhs = matrix[:free, :free], residual[:, :free], rhs[:, :free]
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed or damping == 0:  # perhaps singular: the smallest correction
        step = residual @ torch.linalg.pinv(matrix, hermitian=True, rtol=hidden * torch.finfo(dtype).eps)
    else:
        step = torch.cholesky_solve(residual.T, factor).T
    left = float((residual - step @ matrix).norm() / rhs.norm()) if rhs.norm() > 0 else 0.0
    return torch.cat([start[:, :free] + step, start[:, free:]], 1), left


def gram_matrix(
    x: Float[Tensor, "tokens hidden"], dtype: torch.dtype, reduce: Reduce | None = None
) -> Float[Tensor, "hidden hidden"]:
    """E[x xᵀ] in float64, from products of blocks in `dtype`."""
    reduce = reduce or (lambda tensor: tensor)
    out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for block in token_blocks(x, dtype):
        out += block.T @ block
    return reduce(out) / float(reduce(torch.tensor(float(len(x)), dtype=torch.float64)))


def _logit_shift(x: Tensor, router: Tensor, target: Tensor, dtype: torch.dtype, reduce: Reduce | None) -> Tensor:
    """E[(z − W_i x) xᵀ] in float64."""
    reduce = reduce or (lambda tensor: tensor)
    out = torch.zeros(router.shape, dtype=torch.float64, device=x.device)
    asked = target.split(block_tokens(x.shape[1], dtype, x.device))
    for block, z in zip(token_blocks(x, dtype), asked, strict=True):
        out += (z.to(block) - block @ router.T).T @ block
    return reduce(out) / float(reduce(torch.tensor(float(len(x)), dtype=torch.float64)))
