"""The published solver: plain conjugate gradients in fp32, to compare with and to see what its rounding does.

As the authors' code runs them (router_calibration_cg.py; METHOD sections 4 and 5): no preconditioner, products in fp32
with fp64 sums, right-hand side and first product computed apart and subtracted, and a stop on the residual that is
carried along from iteration to iteration. That one drifts from the true residual, which is computed at the end only.
"""

import logging
import time

import torch
from jaxtyping import Float
from torch import Tensor

from harc.solver.operator import PrecisionOperator
from harc.solver.solution import RouterSolution

log = logging.getLogger(__name__)


def solve_published(
    operator: PrecisionOperator,
    start: Float[Tensor, "experts hidden"],
    *,
    tol: float = 1e-6,
    max_iter: int = 1000,
    began: float | None = None,
) -> RouterSolution:
    """Solves Λ̃ W = b from `start` until the carried residual is within `tol`.

    Args:
        operator: over float32, without target logits.
        start: the first weight.
        tol: ‖carried residual‖ / ‖b‖ at which it stops.
        max_iter: limit of iterations.
        began: when the operator was begun to be made, for `setup_seconds`.

    Returns:
        The solution; `residuals` are the carried ones, `residual` the true one, and `converged` is about that.
    """
    setup = time.perf_counter() - (time.perf_counter() if began is None else began)
    domains = len(operator.domains)
    rhs = operator.summed([domain.router.double() for domain in operator.domains])
    norm = float(rhs.norm())
    w = start.to(operator.device, torch.float32)
    r = (rhs - operator.summed([w.double()] * domains)).float()
    p, rho = r.clone(), _dot(r, r)
    residuals = [rho**0.5 / norm if norm > 0 else 0.0]
    reason = ""
    while residuals[-1] > tol and len(residuals) <= max_iter:
        product = operator.summed([p.double()] * domains).float()
        curvature = _dot(p, product)
        if not 0 < curvature < float("inf"):
            reason = "breakdown: the operator is not positive along a direction"
            break
        step = rho / curvature
        w.add_(p, alpha=step)
        r.sub_(product, alpha=step)
        rho, old = _dot(r, r), rho
        p.mul_(rho / old).add_(r)
        residuals.append(rho**0.5 / norm)
    reached = float(operator.residual(w.double()).norm()) / norm if norm > 0 else 0.0
    converged = reached <= tol
    if not converged:
        believed = "believed, but not reached" if residuals[-1] <= tol else "iteration limit"
        reason = reason or f"{believed}: carried residual {residuals[-1]:.2e}"
        log.info("published solver stopped at residual %.2e (tolerance %.0e): %s", reached, tol, reason)
    return RouterSolution(
        w, len(residuals) - 1, reached, converged, residuals, reason or "converged", setup_seconds=setup
    )


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
