"""Solving one router: ( Σ_i Λ̃_i ) W = Σ_i Λ̃_i W_i by preconditioned conjugate gradients with iterative refinement.

The weight is kept in float64; conjugate gradients solve for a correction in the working precision, Λ̃ δ = b − Λ̃ W, and
when they believe ‖residual‖ ≤ tol ‖b‖ the true residual is computed from the new weight. Only that one ends the solve;
otherwise the next round starts from it. With products in bf16 a round goes for two digits, and the rest is done in the
working precision where that stalls. A solve that stalls there too goes on with residuals in float64, and then with
the diagonal instead of its preconditioner. Target logits add to the right-hand side (harc.solver.operator). The
identity Hessian is solved directly (harc.solver.identity).
Where Λ̃ is singular (α = 1), the solution closest to the start is the one returned.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from harc.models.routers import Activation
from harc.solver.cg import conjugate_gradients
from harc.solver.identity import gram_matrix, solve_identity
from harc.solver.operator import (
    PrecisionOperator,
    Reduce,
    check_inputs,
    coupling_and_damping,
    last_columns,
    working_dtype,
)
from harc.solver.preconditioner import Preconditioner, make_preconditioner
from harc.solver.published import solve_published
from harc.solver.settings import SolveSettings, with_options
from harc.solver.solution import RouterSolution

log = logging.getLogger(__name__)
_PATIENCE = 50
_ROUND = 0.01  # what a round of few digits aims at, of the residual that it starts from


def solve_router(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    targets: Sequence[Float[Tensor, "tokens experts"]] | None = None,
    *,
    init: Float[Tensor, "experts hidden"] | None = None,
    activation: Activation = "softmax",
    settings: SolveSettings | None = None,
    dtype: torch.dtype | None = None,
    reduce: Reduce | None = None,
    fixed: int = 0,
    **options: Any,
) -> RouterSolution:
    """Fits one router to its sources' distributions by the quadratic form (METHOD sections 2 to 5).

    Args:
        features: router inputs of each domain, in the dtype the model computes in.
        routers: one source router per domain.
        targets: target logits of each domain, such as the source's on its own inputs; None: W_i x, the paper's.
        init: the start, by default the mean of the source routers.
        activation: what turns router logits into probabilities.
        settings: how to solve, by default the paper's settings.
        dtype: the working precision, by default float64 for small problems and float32 for others.
        reduce: sums a tensor over data-parallel processes, each holding a part of every domain's tokens.
        fixed: how many of the last columns stay as in `init`, such as a bias (the weight of a feature that is 1).
        options: fields of SolveSettings to set here, such as alpha=0.9.

    Raises:
        ValueError: shapes that do not fit, no tokens, NaN or Inf, a setting out of range or for `fit_router` alone.
        TypeError: an option that is no setting.
    """
    began = time.perf_counter()
    settings = with_options(settings or SolveSettings(), options)
    alpha = one_alpha(settings)
    check_inputs(features, routers, targets, shared=reduce is not None)
    published = settings.solver == "published"
    if published and targets is not None:
        raise ValueError("solver=published fits to the sources' routers on the given features: leave out targets")
    if published and fixed:
        raise ValueError("solver=published fits whole routers: leave out fixed columns")
    start = torch.stack([router.double() for router in routers]).mean(0) if init is None else init.double()
    if start.shape != routers[0].shape or not torch.isfinite(start).all():
        raise ValueError(f"init: expected finite values of shape {tuple(routers[0].shape)}, found {tuple(start.shape)}")
    if settings.hessian == "identity":
        work = dtype or working_dtype(features, routers)
        weight, left = solve_identity(
            features, routers, targets, start, *coupling_and_damping(alpha, settings.beta), work, reduce, fixed
        )
        solution = RouterSolution(weight, 0, left, True, [left], preconditioner="direct")
    else:
        operator = PrecisionOperator(
            features,
            routers,
            targets,
            alpha=alpha,
            beta=settings.beta,
            hessian=settings.hessian,
            activation=activation,
            dtype=torch.float32 if published else dtype,
            reduce=reduce,
            fast=False if published else None,
            plain=published,
            fixed=last_columns(start, fixed),
        )
        tol, limit = settings.tol, settings.max_iter
        if published:
            solution = solve_published(operator, start, tol=tol, max_iter=limit, began=began)
        else:
            approximate = make_preconditioner(operator, settings.preconditioner)
            solution = solve(operator, start, approximate, tol=tol, max_iter=limit, began=began)
    solution.weight = solution.weight.to(features[0].device, solution_dtype(features))
    solution.seconds = time.perf_counter() - began
    solution.alpha = alpha if settings.beta is None else None
    return solution


def one_alpha(settings: SolveSettings) -> float:
    """The α of settings that one quadratic solve answers.

    Raises:
        ValueError: settings that need `harc.solver.fit.fit_router`.
    """
    if settings.alpha == "auto" or settings.objective != "quadratic":
        raise ValueError(
            f"alpha={settings.alpha}, objective={settings.objective}: one quadratic solve has a number for alpha; "
            "harc.solver.fit.fit_router chooses it on held-out tokens and minimises the exact objective"
        )
    return settings.alpha


def solution_dtype(features: Sequence[Tensor]) -> torch.dtype:
    """What a solved weight is returned in: float32, or float64 where the features are."""
    return torch.float64 if features[0].dtype == torch.float64 else torch.float32


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
    since, used = best, preconditioner.name
    target = tol * norm * (0.1 if operator.dtype == torch.float64 else 1)  # a digit to spare where it costs nothing
    while best > tol and not reason:
        # bf16 products, and float32 ones that leave the space a singular Λ sees, hold for a few digits at a time
        few_digits = operator.fast or (operator.singular and operator.dtype == torch.float32)
        goal = max(target, _ROUND * float(r.norm())) if few_digits else target
        step, steps, broke = conjugate_gradients(
            operator, r.to(operator.dtype), preconditioner, goal, max_iter - iterations, _patience(preconditioner)
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
            elif stalls >= 2:
                way = _another_way(operator, preconditioner, hopeless=bool(broke) and best > 0.1 * since)
                if way is None:
                    reason = broke or "stagnation"
                    break
                if way[1] is not preconditioner:
                    log.warning("the %s preconditioner is left for the diagonal: %s", used, broke or "stagnation")
                    used = f"{used}, then diagonal"
                (operator, preconditioner), stalls = way, 0
                r = operator.residual(best_w)
                best = since = float(r.norm()) / norm
    if operator.singular:
        best_w, best = _nearest(operator, start, best_w, best, tol)
    converged = best <= tol
    if not converged:
        log.warning("router solve stopped at residual %.2e (tolerance %.0e): %s", best, tol, reason)
    return RouterSolution(
        best_w, iterations, best, converged, residuals, reason or "converged", used, setup_seconds=setup
    )


def _another_way(
    operator: PrecisionOperator, preconditioner: Preconditioner, hopeless: bool
) -> tuple[PrecisionOperator, Preconditioner] | None:
    """What a stalled solve goes on with: exact products, residuals in float64, the diagonal; None: nothing is left.

    hopeless: it broke, and had not come far.
    """
    if operator.fast:
        return operator.exact(), preconditioner
    if preconditioner.name != "diagonal" and (hopeless or operator.is_wide):
        return operator, make_preconditioner(operator, "diagonal")
    return None if operator.is_wide else (operator.wide(), preconditioner)


def _patience(preconditioner: Preconditioner) -> int | None:
    """Iterations without progress after which a factor is given up; what is always right is not."""
    return None if preconditioner.name in ("diagonal", "none") else _PATIENCE


def _nearest(operator: PrecisionOperator, start: Tensor, w: Tensor, reached: float, tol: float) -> tuple[Tensor, float]:
    """The solution closest to the start and its residual; w itself where rounding makes that one no solution."""
    start = start.to(w)
    near = start + _seen(operator, w - start)
    norm = float(operator.rhs.norm())
    left = float(operator.residual(near).norm()) / norm if norm > 0 else 0.0
    return (near, left) if left <= max(tol, reached) else (w, reached)


def _seen(operator: PrecisionOperator, step: Tensor) -> Tensor:
    """The part of a correction that Λ sees: without its mean over the experts in use, in the span of the features."""
    grams = [gram_matrix(domain.features, operator.dtype, operator.reduce) for domain in operator.domains]
    covariance = torch.stack(grams).sum(0)
    covariance[operator.free :] = covariance[:, operator.free :] = 0
    values, vectors = torch.linalg.eigh(covariance)
    limit = values[-1] * len(values) * torch.finfo(operator.dtype).eps
    basis = vectors[:, values > limit]
    used = operator.diagonal.sum(1) > 0
    step = (step - step[used].mean(0)) * used[:, None]
    return step @ basis @ basis.T
