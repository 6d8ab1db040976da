"""A plain statement of HARC's published solver, to measure ours against: conjugate gradients without a preconditioner.

Everything is recomputed at every product, as published: probabilities by softmax, the diagonal, all in fp32 over all
tokens at once, with fp64 accumulation of the sums over domains and of scalars (METHOD sections 4 and 5). It stops on
the residual that it carries along, and never computes the true one.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def product(features: list[Tensor], routers: list[Tensor], v: Tensor, alpha: float) -> Tensor:
    """Λ̃ V in float64."""
    total = torch.zeros(v.shape, dtype=torch.float64)
    for x, w in zip(features, routers, strict=True):
        total += domain_product(x, w, v, alpha).double()
    return total


def domain_product(x: Tensor, w: Tensor, v: Tensor, alpha: float) -> Tensor:
    """One domain's Λ̃_i V."""
    p = (x @ w.T).softmax(1)
    z = x @ v.T
    hz = p * z - p * (p * z).sum(1, keepdim=True)
    full = hz.T @ x / len(x)
    diagonal = (p * (1 - p)).T @ (x * x) / len(x)
    return alpha * full + (1 - alpha) * diagonal * v


def solve(
    features: list[Tensor],
    routers: list[Tensor],
    start: Tensor,
    *,
    alpha: float = 0.9,
    tol: float = 1e-6,
    max_iter: int = 1000,
    apply: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, int, float]:
    """Plain conjugate gradients from `start`: the weight, the iterations, the residual it believes in.

    apply: another product Λ̃ V. With a faster one the iterations of a long solve can be counted in less time.
    """
    features = [x.float() for x in features]
    apply = apply or (lambda v: product(features, routers, v, alpha))
    rhs = sum(domain_product(x, w, w, alpha).double() for x, w in zip(features, routers, strict=True))
    w = start.clone()
    r = (rhs - apply(w)).float()
    p, rho = r.clone(), dot(r, r)
    limit = tol * float(rhs.norm())
    iterations = 0
    while iterations < max_iter and rho**0.5 > limit:
        q = apply(p).float()
        step = rho / dot(p, q)
        w += step * p
        r -= step * q
        rho, old = dot(r, r), rho
        p = r + (rho / old) * p
        iterations += 1
    return w, iterations, rho**0.5 / float(rhs.norm())


def dense_solution(features: list[Tensor], routers: list[Tensor], start: Tensor, alpha: float = 0.9) -> Tensor:
    """The dense float64 solve of the normal equations, from products with unit vectors: small sizes only."""
    features, routers, start = [x.double() for x in features], [w.double() for w in routers], start.double()
    units = torch.eye(start.numel(), dtype=torch.float64).view(-1, *start.shape)
    matrix = torch.stack([product(features, routers, unit, alpha).reshape(-1) for unit in units], 1)
    rhs = sum(domain_product(x, w, w, alpha) for x, w in zip(features, routers, strict=True))
    residual = rhs - product(features, routers, start, alpha)
    return start + torch.linalg.solve(matrix, residual.reshape(-1)).view(start.shape)


def dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
