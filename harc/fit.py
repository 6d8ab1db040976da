"""Fitting one layer's router: a given α or the best of several on held-out tokens, and the exact objective if wanted.

alpha="auto": the fit never makes routing KL on the held-out tokens worse. Several α are solved over shared statistics,
each from the solution before; the lowest held-out KL wins, with the weight as it will be stored; if none beats the
start, the start is kept. With too few tokens the quadratic fit follows their accidents, and this is what notices.
"""

import time
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harc.newton import mean_kl, minimise_kl
from harc.operator import Hessian, PrecisionOperator, Reduce
from harc.preconditioner import PreconditionerName, make_preconditioner
from harc.routers import Activation
from harc.solver import RouterSolution, check_options, solve, solve_router

Objective = Literal["quadratic", "kl"]
ALPHAS = (0.5, 0.8, 0.9, 0.95, 0.99)


def fit_router(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    *,
    init: Float[Tensor, "experts hidden"],
    held_out: Sequence[Float[Tensor, "held hidden"]] | None = None,
    alpha: float | Literal["auto"] = 0.9,
    beta: float | None = None,
    hessian: Hessian = "full",
    objective: Objective = "quadratic",
    activation: Activation = "softmax",
    tol: float = 1e-6,
    max_iter: int = 1000,
    preconditioner: PreconditionerName = "auto",
    reduce: Reduce | None = None,
) -> RouterSolution:
    """Fits a router as `solve_router` does, with the choices of this file's docstring.

    Args:
        features: a domain's router inputs to fit to.
        routers: a domain's source router each.
        init: the merged router; its dtype is the one the result will be stored in.
        held_out: a domain's router inputs to choose α by; needed for alpha="auto".
        alpha: damping of the off-diagonals, or "auto".
        beta: if given, the β variant instead.
        hessian: full, diagonal or identity.
        objective: "quadratic", or "kl": Newton steps on the exact routing KL from the quadratic solution.
        activation: what turns router logits into probabilities.
        tol: of the quadratic solve.
        max_iter: of the quadratic solve.
        preconditioner: see harc.preconditioner.
        reduce: sums a tensor over data-parallel processes.

    Raises:
        ValueError: as `solve_router`; settings that exclude one another.
    """
    check_fit(alpha, beta, hessian, objective, preconditioner)
    if alpha != "auto" and objective == "quadratic":
        return solve_router(
            features,
            routers,
            alpha=alpha,
            beta=beta,
            hessian=hessian,
            activation=activation,
            init=init,
            tol=tol,
            max_iter=max_iter,
            preconditioner=preconditioner,
            reduce=reduce,
        )
    if alpha == "auto" and held_out is None:
        raise ValueError("alpha='auto' chooses by held-out tokens; none are given")
    began = time.perf_counter()
    start = init.double()
    alphas = ALPHAS if alpha == "auto" else (alpha,)
    operator = PrecisionOperator(
        features, routers, alpha=alphas[0], beta=beta, hessian=hessian, activation=activation, reduce=reduce
    )
    best: RouterSolution | None = None
    chosen = alphas[0]
    judged: dict[float, float] = {}
    w = start
    for candidate in alphas:
        damped = operator.regularised(candidate, beta)
        approximate = make_preconditioner(damped, preconditioner)
        solution = solve(damped, w, approximate, tol=tol, max_iter=max_iter)
        solution.alpha, w = candidate, solution.weight
        if objective == "kl":
            solution.weight, solution.kl_steps, extra = minimise_kl(
                features, routers, w, approximate, activation=activation, reduce=reduce
            )
            solution.iterations += extra
        if held_out is not None and alpha == "auto":
            stored = solution.weight.to(init.dtype)
            judged[candidate] = mean_kl(held_out, routers, stored, activation, reduce)
        if best is None or judged.get(candidate, 0.0) < judged.get(chosen, 0.0):
            best, chosen = solution, candidate
    assert best is not None
    if held_out is not None and alpha == "auto":
        before = mean_kl(held_out, routers, init, activation, reduce)
        best.held_out_kl = {"start": before, **{str(candidate): value for candidate, value in judged.items()}}
        if not judged[chosen] < before:
            best.weight, best.kept = start, True
    wide = features[0].dtype == torch.float64
    best.weight = best.weight.to(features[0].device, torch.float64 if wide else torch.float32)
    best.seconds = time.perf_counter() - began
    return best


def check_fit(
    alpha: float | Literal["auto"], beta: float | None, hessian: str, objective: str, preconditioner: str
) -> None:
    """Holds the settings of a fit against what there is and against each other.

    Raises:
        ValueError: naming the setting.
    """
    check_options(0.9 if alpha == "auto" else alpha, beta, hessian, preconditioner)
    if objective not in ("quadratic", "kl"):
        raise ValueError(f"objective {objective!r}: expected quadratic or kl")
    if alpha == "auto" and beta is not None:
        raise ValueError("alpha='auto' and beta exclude each other: beta is a variant of its own")
    if hessian == "identity" and (alpha == "auto" or objective == "kl"):
        raise ValueError(
            "hessian='identity' ignores the routing distribution: alpha='auto' and objective='kl' need another"
        )
