"""Solving one router: ( Σ_i Λ̃_i ) W = Σ_i Λ̃_i W_i by preconditioned conjugate gradients with iterative refinement.

The weight is kept in float64; conjugate gradients solve for a correction in the working precision, Λ̃ δ = b − Λ̃ W, and
when they believe ‖residual‖ ≤ tol ‖b‖ the true residual is computed from the new weight. Only that one ends the solve;
otherwise the next round starts from it. With products in bf16 a round goes for two digits, and the rest is done in the
working precision where that stalls. Identity Hessian: ( Σ_i G̃_i ) Wᵀ = Σ_i G̃_i W_iᵀ, G_i = E[x xᵀ], directly.
Where Λ̃ is singular (α = 1), the solution closest to the start is the one returned.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harc.operator import Hessian, PrecisionOperator, Reduce, check_inputs, token_blocks, working_dtype
from harc.preconditioner import Preconditioner, PreconditionerName, make_preconditioner
from harc.routers import Activation

log = logging.getLogger(__name__)
_FAST_ROUND = 0.01  # what a round with bf16 products aims at, of the residual that it starts from


@dataclass
class RouterSolution:
    """A solved router.

    weight: float32 (float64 if the features are); residual: the true ‖b − Λ̃ W‖ / ‖b‖; residuals: one an iteration, from
    the start (as conjugate gradients see it; true at the end of every round); reason: why it ended; seconds: wall time
    in all, setup_seconds: of them, statistics and preconditioner. alpha, kept, held_out_kl, kl_steps: of harc.fit, the
    α in use, whether the start was kept, held-out routing KL by α and of the `start`, and the routing KL after each
    Newton step.
    """

    weight: Float[Tensor, "experts hidden"]
    iterations: int
    residual: float
    converged: bool
    residuals: list[float] = field(default_factory=list)
    reason: str = "converged"
    preconditioner: str = "none"
    seconds: float = 0.0
    setup_seconds: float = 0.0
    alpha: float | None = None
    kept: bool = False
    held_out_kl: dict[str, float] = field(default_factory=dict)
    kl_steps: list[float] = field(default_factory=list)


def solve_router(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    *,
    alpha: float = 0.9,
    beta: float | None = None,
    hessian: Hessian = "full",
    activation: Activation = "softmax",
    init: Float[Tensor, "experts hidden"] | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    preconditioner: PreconditionerName = "auto",
    dtype: torch.dtype | None = None,
    reduce: Reduce | None = None,
) -> RouterSolution:
    """Fits one router to its sources' distributions (METHOD sections 2 to 5).

    Args:
        features: a domain's router inputs, in the dtype the model computes in.
        routers: a domain's source router each.
        alpha: off-diagonals are damped, α Λ + (1 − α) diag Λ.
        beta: if given, the diagonal is amplified instead, Λ + β diag Λ.
        hessian: the curvature: full, diagonal or identity.
        activation: what turns router logits into probabilities.
        init: the start, by default the mean of the source routers.
        tol: on ‖b − Λ̃ W‖ / ‖b‖.
        max_iter: iterations at most.
        preconditioner: see harc.preconditioner.
        dtype: the working precision, by default float64 for small problems and float32 for others.
        reduce: sums a tensor over data-parallel processes, each holding a part of every domain's tokens.

    Raises:
        ValueError: shapes that do not fit, no tokens, NaN or Inf, an unknown option.
    """
    began = time.perf_counter()
    check_options(alpha, beta, hessian, preconditioner)
    check_inputs(features, routers, shared=reduce is not None)
    start = torch.stack([router.double() for router in routers]).mean(0) if init is None else init.double()
    if start.shape != routers[0].shape or not torch.isfinite(start).all():
        raise ValueError(f"init: expected finite values of shape {tuple(routers[0].shape)}, found {tuple(start.shape)}")
    if hessian == "identity":
        work = dtype or working_dtype(features, routers)
        solution = _solve_identity(features, routers, start, alpha, beta, work, reduce)
    else:
        operator = PrecisionOperator(
            features,
            routers,
            alpha=alpha,
            beta=beta,
            hessian=hessian,
            activation=activation,
            dtype=dtype,
            reduce=reduce,
        )
        approximate = make_preconditioner(operator, preconditioner)
        solution = solve(operator, start, approximate, tol=tol, max_iter=max_iter, began=began)
    wide = features[0].dtype == torch.float64
    solution.weight = solution.weight.to(features[0].device, torch.float64 if wide else torch.float32)
    solution.seconds = time.perf_counter() - began
    solution.alpha = alpha if beta is None else None
    return solution


def check_options(alpha: float, beta: float | None, hessian: str, preconditioner: str) -> None:
    """Holds the settings of a solve against what there is.

    Raises:
        ValueError: α or β out of range, an unknown Hessian or preconditioner.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, found {alpha}")
    if beta is not None and not 0 <= beta < float("inf"):
        raise ValueError(f"beta must not be negative, found {beta}")
    for name, value, allowed in (("hessian", hessian, Hessian), ("preconditioner", preconditioner, PreconditionerName)):
        if value not in get_args(allowed):
            raise ValueError(f"{name} {value!r}: expected one of {', '.join(get_args(allowed))}")


def solve(
    operator: PrecisionOperator,
    start: Float[Tensor, "experts hidden"],
    preconditioner: Preconditioner,
    *,
    tol: float = 1e-6,
    max_iter: int = 1000,
    began: float | None = None,
) -> RouterSolution:
    """Solves Λ̃ W = b from `start`; statistics and preconditioner may be shared by several calls."""
    setup = time.perf_counter() - (time.perf_counter() if began is None else began)
    norm = float(operator.rhs.norm())
    w = start.to(operator.device, torch.float64)
    r = operator.residual(w)
    best, best_w = float(r.norm()) / norm if norm > 0 else 0.0, w
    residuals, iterations, reason, stalls = [best], 0, "", 0
    target = tol * norm * (0.1 if operator.dtype == torch.float64 else 1)  # a digit to spare where it costs nothing
    while best > tol and not reason:
        goal = max(target, _FAST_ROUND * float(r.norm())) if operator.fast else target
        step, steps, broke = conjugate_gradients(
            operator, r.to(operator.dtype), preconditioner, goal, max_iter - iterations
        )
        w = best_w + step.double()
        r = operator.residual(w)
        reached = float(r.norm()) / norm
        residuals += [value / norm for value in steps[:-1]] + [reached]
        iterations += len(steps)
        if not reached < best:  # NaN too
            r, reached = operator.residual(best_w), best
            stalls += 2
        else:
            stalls = stalls + 1 if reached > 0.5 * best else 0
            best, best_w = reached, w
        if best > tol:
            if iterations >= max_iter:
                reason = "iteration limit"
            elif stalls >= 2 and operator.fast:
                operator, stalls = operator.exact(), 0
            elif stalls >= 2:
                reason = broke or "stagnation"
    if operator.singular:
        best_w = start + _seen(operator, best_w - start)
    converged = best <= tol
    if not converged:
        log.warning("router solve stopped at residual %.2e (tolerance %.0e): %s", best, tol, reason)
    return RouterSolution(
        best_w, iterations, best, converged, residuals, reason or "converged", preconditioner.name, setup_seconds=setup
    )


def conjugate_gradients(
    operator: PrecisionOperator, r: Tensor, preconditioner: Preconditioner, target: float, max_iter: int
) -> tuple[Tensor, list[float], str]:
    """One round for Λ̃ δ = r from δ = 0: the correction, ‖residual‖ after each iteration, and what broke, if anything.

    Scalars are float64 sums. The direction update is the flexible one (Polak–Ribière), which forgives a preconditioner
    that rounding leaves slightly nonlinear.
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
        z = preconditioner(r)
        rho, old = _dot(r, z), rho
        p.mul_(max(0.0, (rho - _dot(previous, z)) / old)).add_(z)
    return delta, norms, ""


def _solve_identity(
    features: Sequence[Tensor],
    routers: Sequence[Tensor],
    start: Tensor,
    alpha: float,
    beta: float | None,
    dtype: torch.dtype,
    reduce: Reduce | None,
) -> RouterSolution:
    coupling, damping = (alpha, 1 - alpha) if beta is None else (1.0, beta)
    hidden = start.shape[1]
    matrix = torch.zeros(hidden, hidden, dtype=torch.float64, device=features[0].device)
    start = start.to(matrix.device)
    residual, rhs = torch.zeros_like(start), torch.zeros_like(start)
    for index, (x, router) in enumerate(zip(features, routers, strict=True)):
        gram = gram_matrix(x, dtype, reduce)
        if not torch.isfinite(gram).all():
            raise ValueError(f"domain {index}: NaN or Inf in the features")
        gram = coupling * gram + damping * torch.diag(gram.diagonal())
        matrix += gram
        residual += (router.to(start) - start) @ gram
        rhs += router.to(start) @ gram
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed or damping == 0:  # perhaps singular: the smallest correction
        step = residual @ torch.linalg.pinv(matrix, hermitian=True, rtol=hidden * torch.finfo(dtype).eps)
    else:
        step = torch.cholesky_solve(residual.T, factor).T
    left = float((residual - step @ matrix).norm() / rhs.norm()) if rhs.norm() > 0 else 0.0
    return RouterSolution(start + step, 0, left, True, [left], preconditioner="direct")


def gram_matrix(
    x: Float[Tensor, "tokens hidden"], dtype: torch.dtype, reduce: Reduce | None = None
) -> Float[Tensor, "hidden hidden"]:
    """E[x xᵀ] in float64, from products of blocks in `dtype`."""
    reduce = reduce or (lambda tensor: tensor)
    out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for block in token_blocks(x, dtype):
        out += block.T @ block
    return reduce(out) / float(reduce(torch.tensor(float(len(x)), dtype=torch.float64)))


def _seen(operator: PrecisionOperator, step: Tensor) -> Tensor:
    """The part of a correction that Λ sees: without its mean over the experts in use, in the span of the features."""
    covariance = sum(gram_matrix(domain.features, operator.dtype, operator.reduce) for domain in operator.domains)
    values, vectors = torch.linalg.eigh(covariance)
    limit = values[-1] * len(values) * torch.finfo(operator.dtype).eps
    basis = vectors[:, values > limit]
    used = operator.diagonal.sum(1) > 0
    step = (step - step[used].mean(0)) * used[:, None]
    return step @ basis @ basis.T


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
