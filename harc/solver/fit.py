"""Fitting one layer's router: a given α or the best of several on held-out tokens, and the exact objective if wanted.

With held-out tokens a fit never makes the routing KL on them worse: it is judged with the weight as it will be stored,
and if it does not beat the start, the start is kept. alpha="auto": several α are solved over shared statistics, each
from the solution before, and the lowest held-out KL wins. With too few tokens a fit follows their accidents, and this
is what notices; the more so with target logits, which the features determine only in part.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from harc.models.routers import Activation
from harc.solver.newton import mean_kl, minimise_kl
from harc.solver.objectives import RouterProblem, find_objective, refined
from harc.solver.operator import PrecisionOperator, Reduce, check_inputs, last_columns
from harc.solver.preconditioner import make_preconditioner
from harc.solver.settings import SolveSettings, with_options
from harc.solver.solution import RouterSolution
from harc.solver.solve import solution_dtype, solve, solve_router


def fit_router(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    targets: Sequence[Float[Tensor, "tokens experts"]] | None = None,
    *,
    init: Float[Tensor, "experts hidden"],
    held_out: Sequence[Float[Tensor, "held hidden"]] | None = None,
    held_out_targets: Sequence[Float[Tensor, "held experts"]] | None = None,
    activation: Activation = "softmax",
    settings: SolveSettings | None = None,
    reduce: Reduce | None = None,
    fixed: int = 0,
    **options: Any,
) -> RouterSolution:
    """Fits a router as `solve_router` does, with the choices of this file's docstring.

    Args:
        features: router inputs of each domain, to fit to.
        routers: one source router per domain.
        targets: target logits of each domain, such as the source's on its own inputs; None: W_i x, the paper's.
        init: the merged router; its dtype is the one the result will be stored in.
        held_out: router inputs of each domain, on which the result is never worse than `init`; alpha="auto" needs
            them.
        held_out_targets: target logits of each domain on `held_out`; needed with `targets`.
        activation: what turns router logits into probabilities.
        settings: how to fit, by default the paper's settings.
        reduce: sums a tensor over data-parallel processes.
        fixed: how many of the last columns stay as in `init`, such as a bias (the weight of a feature that is 1).
        options: fields of SolveSettings to set here, such as alpha="auto".

    Raises:
        ValueError: as `solve_router`; held-out tokens or their targets missing.
        TypeError: an option that is no setting.
    """
    began = time.perf_counter()
    settings = with_options(settings or SolveSettings(), options)
    if settings.alpha == "auto" and held_out is None:
        raise ValueError("alpha=auto chooses by held-out tokens; none are given")
    if reduce is not None and find_objective(settings.objective) is not None:
        raise ValueError(f"objective={settings.objective} sees one process's tokens alone: calibrate in one process")
    if held_out is not None:
        if (targets is None) != (held_out_targets is None):
            raise ValueError("expected targets and held_out_targets both, or neither, beside held-out tokens")
        check_inputs(held_out, routers, held_out_targets, shared=True)
    if settings.hessian == "identity" or (settings.objective == "quadratic" and settings.alpha != "auto"):
        fits: Iterator[RouterSolution] = iter(
            [
                solve_router(
                    features,
                    routers,
                    targets,
                    init=init,
                    activation=activation,
                    settings=settings,
                    reduce=reduce,
                    fixed=fixed,
                )
            ]
        )
    else:
        fits = _fits(features, routers, targets, init, activation, settings, reduce, fixed)
    if held_out is None:
        best = next(fits)
    else:
        best = _best(fits, init, lambda w: mean_kl(held_out, routers, w, activation, reduce, held_out_targets))
    best.weight = best.weight.to(features[0].device, solution_dtype(features))
    best.seconds = time.perf_counter() - began
    return best


def _fits(
    features: Sequence[Tensor],
    routers: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    init: Tensor,
    activation: Activation,
    settings: SolveSettings,
    reduce: Reduce | None,
    fixed: int,
) -> Iterator[RouterSolution]:
    """Yields the fit of each α, weights in float64."""
    operator = PrecisionOperator(
        features,
        routers,
        targets,
        alpha=settings.alphas[0],
        beta=settings.beta,
        hessian=settings.hessian,
        activation=activation,
        reduce=reduce,
        fixed=last_columns(init, fixed),
    )
    w = init.double()
    for alpha in settings.alphas:
        damped = operator.regularised(alpha, settings.beta)
        approximate = make_preconditioner(damped, settings.preconditioner)
        solution = solve(damped, w, approximate, tol=settings.tol, max_iter=settings.max_iter)
        w = solution.weight
        solution.alpha = alpha if settings.beta is None else None
        if settings.objective == "kl":
            solution.weight, solution.kl_steps, extra = minimise_kl(
                features, routers, w, approximate, activation=activation, reduce=reduce, targets=targets, fixed=fixed
            )
            solution.iterations += extra
        elif settings.objective != "quadratic":
            solution.weight = refined(
                settings.objective, RouterProblem(features, routers, targets, activation), w, fixed
            )
        yield solution


def _best(fits: Iterator[RouterSolution], init: Tensor, held_out_kl: Callable[[Tensor], float]) -> RouterSolution:
    """The fit with the lowest held-out KL as it will be stored, with the start's weight where that is no lower."""
    judged = {"start": held_out_kl(init)}
    best: RouterSolution | None = None
    lowest = math.inf
    for solution in fits:
        reached = held_out_kl(solution.weight.to(init.dtype))
        judged["fitted" if solution.alpha is None else str(solution.alpha)] = reached
        if best is None or reached < lowest:
            best, lowest = solution, reached
    assert best is not None
    best.held_out_kl = judged
    if not lowest < judged["start"]:
        best.weight, best.kept = init.double(), True
    return best
