"""Conjugate gradients for Λ̃ δ = r: one round in the working precision."""

import torch
from torch import Tensor

from harc.solver.operator import PrecisionOperator
from harc.solver.preconditioner import Preconditioner


def conjugate_gradients(
    operator: PrecisionOperator,
    r: Tensor,
    preconditioner: Preconditioner,
    target: float,
    max_iter: int,
    patience: int | None = None,
) -> tuple[Tensor, list[float], str]:
    """One round for Λ̃ δ = r from δ = 0: the correction, ‖residual‖ after each iteration, and what broke, if anything.

    Scalars are float64 sums. The direction update is the flexible one (Polak–Ribière), which forgives a preconditioner
    that rounding leaves slightly nonlinear. patience: iterations in which the smallest ‖residual‖ must fall by a tenth,
    or the round ends.
    """
    delta = torch.zeros_like(r)
    if operator.singular:
        r = r - r.mean(0)
    z = preconditioner(r)
    p, rho = z.clone(), _dot(r, z)
    norms: list[float] = []
    while len(norms) < max_iter:
        product = operator.product(p)
        curvature = _dot(p, product)
        if not (curvature > 0 and rho > 0):
            return delta, [*norms, float(r.norm())], "breakdown: the operator is not positive along a direction"
        step = rho / curvature
        delta.add_(p, alpha=step)
        previous = r.clone()
        r = r.sub_(product, alpha=step)
        norms.append(_dot(r, r) ** 0.5)
        if not norms[-1] < float("inf"):
            return torch.zeros_like(delta), norms, "non-finite values"
        if norms[-1] <= target:
            break
        if patience and len(norms) > patience and min(norms[-patience:]) > 0.9 * min(norms[:-patience]):
            return delta, norms, f"no progress in {patience} iterations"
        z = preconditioner(r)
        rho, old = _dot(r, z), rho
        p.mul_(max(0.0, (rho - _dot(previous, z)) / old)).add_(z)
    return delta, norms, ""


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
