"""Preconditioners for Λ̃: one Cholesky factor an expert, and the constant direction solved exactly.

Expert blocks. The block of Λ̃ at (e, e) is  B_e = coupling · E[q_e x xᵀ] + damping · diag(D_e),  q = p (1 − p). It is
estimated from m tokens an expert, drawn without replacement with inclusion probability π ∝ q_e (at most 1; tokens that
reach 1 are always in), weighted by q_e / π, and rescaled to the diagonal D_e, which is known exactly. Building takes
E m d² operations whatever the number of tokens; with m at least the number of tokens the blocks are exact.

Constant direction. H 1 = 0: adding one vector u to every expert's row is seen by damping alone,
Λ̃ (1 uᵀ) = damping · D ∘ (1 uᵀ), so the coarse operator on u is the diagonal Σ_e damping · D_e, inverted by one
division. Blocks B and coarse inverse Q are joined multiplicatively (balancing), which costs no product with Λ̃:

    M⁻¹ = Q + (I − Q Λ̃) B⁻¹ (I − Λ̃ Q)

With damping = 0 the direction is in the null space; then Q projects it out instead.
"""

from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from harc.operator import PrecisionOperator

PreconditionerName = Literal["auto", "blocks", "diagonal", "none"]


_LEAST_SAMPLED = 2048


class Preconditioner(Protocol):
    """An approximate inverse: name, and the map from a residual to a correction."""

    name: str

    def __call__(self, r: Float[Tensor, "experts hidden"]) -> Float[Tensor, "experts hidden"]:
        """Applies M⁻¹ to a residual."""
        ...


def make_preconditioner(
    operator: PrecisionOperator, name: PreconditionerName = "auto", *, sampled: int | None = None, seed: int = 0
) -> Preconditioner:
    """Builds a preconditioner. sampled: tokens an expert that the blocks are estimated from.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        name = "blocks"
    if name == "none":
        return _Identity(operator)
    if name == "diagonal":
        return _Diagonal(operator)
    if name == "blocks":
        return ExpertBlocks(operator, sampled or max(2 * operator.shape[1], _LEAST_SAMPLED), seed)
    raise ValueError(f"preconditioner {name!r}: expected auto, blocks, diagonal or none")


class _Identity:
    name = "none"

    def __init__(self, operator: PrecisionOperator) -> None:
        self._center = operator.singular

    def __call__(self, r: Tensor) -> Tensor:
        return r - r.mean(0) if self._center else r.clone()


class _Diagonal:
    name = "diagonal"

    def __init__(self, operator: PrecisionOperator) -> None:
        self._inverse = _safe_inverse((operator.coupling + operator.damping) * operator.diagonal).to(operator.dtype)
        self._center = operator.singular

    def __call__(self, r: Tensor) -> Tensor:
        out = self._inverse * (r - r.mean(0) if self._center else r)
        return out - out.mean(0) if self._center else out


class ExpertBlocks:
    """The two-level preconditioner of this file's docstring."""

    name = "blocks"

    def __init__(self, operator: PrecisionOperator, sampled: int, seed: int = 0) -> None:
        experts, hidden = operator.shape
        self._coupled, self._singular = operator.coupled, operator.singular
        self._scale = _safe_inverse(operator.diagonal).sqrt().to(operator.dtype)
        self._diagonal = operator.diagonal.to(operator.dtype)
        self._coarse = _safe_inverse(operator.damping * operator.diagonal.sum(0)).to(operator.dtype)
        self._damping = operator.damping
        self._inverse = torch.empty(experts, hidden, hidden, dtype=operator.dtype, device=operator.device)
        for expert in range(experts):
            block = operator.reduce(_sampled_gram(operator, expert, sampled, seed))
            self._inverse[expert] = self._invert(block, operator.coupling, operator.damping)

    def __call__(self, r: Tensor) -> Tensor:
        """Applies M⁻¹ to a residual."""
        if not self._coupled:
            return self._solve(r)
        if self._singular:
            out = self._solve(r - r.mean(0))
            return out - out.mean(0)
        constant = r.sum(0) * self._coarse  # Q r = 1 ⊗ constant
        out = self._solve(r - self._damping * self._diagonal * constant)
        overlap = (self._damping * self._diagonal * out).sum(0) * self._coarse  # Q Λ̃ out
        return out + (constant - overlap)

    def _solve(self, r: Tensor) -> Tensor:
        return self._scale * torch.bmm(self._inverse, (self._scale * r).unsqueeze(2)).squeeze(2)

    def _invert(self, gram: Tensor, coupling: float, damping: float) -> Tensor:
        """The inverse of coupling · R + damping · I, R the Gram matrix scaled to unit diagonal."""
        scale = _safe_inverse(gram.diagonal().clone()).sqrt()
        block = gram.mul_(scale).mul_(scale[:, None]).mul_(coupling)
        shift = damping
        for attempt in range(8):
            block.diagonal().copy_(torch.full_like(scale, coupling + shift))
            factor, failed = torch.linalg.cholesky_ex(block)
            if not failed:
                return torch.cholesky_inverse(factor)
            shift = max(shift, 1e-6) + 10.0**attempt * 1e-6  # rounding made a nearly singular block indefinite
        return torch.eye(len(block), dtype=block.dtype, device=block.device)


def _sampled_gram(operator: PrecisionOperator, expert: int, sampled: int, seed: int) -> Tensor:
    """Estimates Σ_i 1/T_i Σ_x q_e x xᵀ from about `sampled` tokens."""
    hidden = operator.shape[1]
    gram = torch.zeros(hidden, hidden, dtype=operator.dtype, device=operator.device)
    weights = []
    for domain in operator.domains:
        q = domain.curvature[:, expert]
        weights.append((q * (1 - q) if operator.coupled else q) * domain.weight)
    chosen, factors = _draw(torch.cat(weights), sampled, seed + expert)
    start = 0
    for domain in operator.domains:
        here = (chosen >= start) & (chosen < start + len(domain.features))
        rows, factor = chosen[here] - start, factors[here]
        for part, scale in zip(rows.split(8192), factor.split(8192), strict=True):
            x = domain.features[part].to(operator.dtype).mul_(scale.sqrt()[:, None])
            gram.addmm_(x.T, x)
        start += len(domain.features)
    return gram


def _draw(weights: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws about `count` indices, inclusion π = min(1, c · weight), systematically; returns them and weight / π."""
    if len(weights) <= count:
        return torch.arange(len(weights), device=weights.device), weights
    weights = weights.double()
    total = weights.sum()
    if not total > 0:
        return torch.empty(0, dtype=torch.int64, device=weights.device), weights[:0].float()
    pi = weights * (count / total)
    for _ in range(10):  # tokens above 1 hand their excess to the others
        sure = pi >= 1
        rest = pi[~sure].sum()
        if not (pi > 1).any() or not rest > 0:
            break
        pi = torch.where(sure, 1.0, pi * ((count - int(sure.sum())) / rest).clamp(min=1))
    pi = pi.clamp(max=1)
    edges = pi.cumsum(0)
    start = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(weights.device)
    steps = torch.arange(int(edges[-1]) + 1, device=weights.device, dtype=torch.float64) + start
    steps = steps[steps < edges[-1]]
    chosen = torch.searchsorted(edges, steps, right=True).clamp(max=len(weights) - 1).unique()
    return chosen, (weights[chosen] / pi[chosen]).float()


def _safe_inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is nothing beside its largest value: what no token sees stays as it is."""
    return torch.where(x > 1e-20 * x.max(), 1 / x, 0)
