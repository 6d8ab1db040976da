"""The exact objective of METHOD section 2 by Newton-CG, from the quadratic solution on.

    F(W) = Σ_i E[ KL( p_i(x) ‖ softmax(W x) ) ],   gradient  Σ_i E[ (softmax(W x) − p_i) xᵀ ],   Hessian  Λ(W)

is convex in W. Its Hessian is the precision matrix of harc.solver.operator with W in the place of every source router,
so each step solves Λ̃(W) δ = −gradient by the same preconditioned conjugate gradients, to a loose tolerance, and is
halved until F falls enough (Armijo). F never goes up. Sigmoid routers have the sum of Bernoulli KLs and sigmoid instead
of softmax.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.measures import kl_on_features, kl_to_targets
from harc.models.routers import Activation
from harc.solver.cg import conjugate_gradients
from harc.solver.operator import PrecisionOperator, Reduce, block_tokens, last_columns, token_blocks
from harc.solver.preconditioner import Preconditioner

_LOOSE = 0.1  # of the gradient's norm: what is left of a Newton step's residual
_ARMIJO = 1e-4


def minimise_kl(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    start: Float[Tensor, "experts hidden"],
    preconditioner: Preconditioner,
    *,
    alpha: float = 0.98,
    activation: Activation = "softmax",
    steps: int = 3,
    least_gain: float = 1e-3,
    max_iter: int = 100,
    dtype: torch.dtype | None = None,
    reduce: Reduce | None = None,
    targets: Sequence[Float[Tensor, "tokens experts"]] | None = None,
    fixed: int = 0,
) -> tuple[Float[Tensor, "experts hidden"], list[float], int]:
    """Lowers the routing KL from `start` by up to `steps` Newton steps.

    Args:
        features: a domain's router inputs.
        routers: one source router per domain.
        start: usually the quadratic solution.
        preconditioner: the quadratic solve's; the curvature at W is close enough to the sources'.
        alpha: damping of the Newton matrix's off-diagonals; it shortens steps, the minimum stays where it is.
        activation: what turns router logits into probabilities.
        steps: Newton steps at most.
        least_gain: a step that lowers F by less than this share is the last.
        max_iter: conjugate-gradient iterations of a step at most.
        dtype: the working precision.
        reduce: sums a tensor over data-parallel processes.
        targets: target logits of each domain; None: the source routers' on the features.
        fixed: how many of the last columns stay as at the start.

    Returns:
        The weight (float64), F at the start and after each step (nats, mean over domains), iterations in all.
    """
    w = start.double()
    history = [mean_kl(features, routers, w, activation, reduce, targets)]
    iterations = 0
    for _ in range(steps):
        operator = PrecisionOperator(
            features,
            [w] * len(features),
            alpha=alpha,
            activation=activation,
            dtype=dtype,
            reduce=reduce,
            fixed=last_columns(w, fixed),
        )
        gradient = _gradient(operator, routers, w, activation, targets)
        norm = float(gradient.norm())
        if not norm > 0:
            break
        step, norms, _ = conjugate_gradients(
            operator, -gradient.to(operator.dtype), preconditioner, _LOOSE * norm, max_iter
        )
        iterations += len(norms)
        slope = float((gradient * step.double()).sum()) / len(features)
        length, before = 1.0, history[-1]
        while slope < 0 and length > 1e-3:
            reached = mean_kl(features, routers, w + length * step.double(), activation, reduce, targets)
            if reached <= before + _ARMIJO * length * slope:
                w = w + length * step.double()
                history.append(reached)
                break
            length /= 2
        if not history[-1] < before * (1 - least_gain):
            break
    return w, history, iterations


def mean_kl(
    features: Sequence[Tensor],
    routers: Sequence[Tensor],
    w: Tensor,
    activation: Activation = "softmax",
    reduce: Reduce | None = None,
    targets: Sequence[Tensor] | None = None,
) -> float:
    """The routing KL of W (nats), mean over domains."""
    values = domain_kls(features, routers, w, activation, reduce, targets)
    return sum(values) / len(values)


def domain_kls(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    w: Float[Tensor, "experts hidden"],
    activation: Activation = "softmax",
    reduce: Reduce | None = None,
    targets: Sequence[Float[Tensor, "tokens experts"]] | None = None,
) -> list[float]:
    """The routing KL of W on each domain's tokens (nats): from the target logits, or from the source router's."""
    if targets is None:
        return [kl_on_features(x, source, w, activation, reduce) for x, source in zip(features, routers, strict=True)]
    return [kl_to_targets(x, z, w, activation, reduce) for x, z in zip(features, targets, strict=True)]


def _gradient(
    operator: PrecisionOperator,
    routers: Sequence[Tensor],
    w: Tensor,
    activation: Activation,
    targets: Sequence[Tensor] | None,
) -> Tensor:
    total = torch.zeros_like(w)
    current = w.to(operator.dtype)
    size = block_tokens(operator.shape[1], operator.dtype, operator.device)
    for index, (domain, router) in enumerate(zip(operator.domains, routers, strict=True)):
        source = router.to(w.device, operator.dtype)
        asked = None if targets is None else targets[index].split(size)
        for number, x in enumerate(token_blocks(domain.features, operator.dtype)):
            z = x @ current.T
            target = x @ source.T if asked is None else asked[number].to(z)
            error = z.softmax(1) - target.softmax(1) if activation == "softmax" else z.sigmoid() - target.sigmoid()
            total += domain.weight * (error.T @ x).double()
    total[:, operator.free :] = 0
    return operator.reduce(total)
