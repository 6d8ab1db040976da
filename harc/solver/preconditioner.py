"""Preconditioners for Λ̃: factors over the hidden dimension for the experts, and the constant direction solved exactly.

Expert blocks. The block of Λ̃ at (e, e) is  B_e = coupling · E[q_e x xᵀ] + damping · diag(D_e),  q = p (1 − p). It is
estimated from m tokens an expert, drawn by curvature and length (harc/solver/sampled_gram.py), rescaled to the diagonal
D_e, which is known exactly. Building takes E m d² operations whatever the number of tokens; with m at least the number
of tokens the blocks are exact.

Shared factor. Where d is large and tokens are few, E factors of d × d cost more than they save. Then the experts share
the covariance C of tokens drawn by their total curvature, each with its own mass:  K_e = mass_e (coupling · ρ C +
damping · diag(C)),  mass_e = mean over j of D_ej / C_jj. One d × d factor, m d² operations. What an expert sees beyond
that is first of all its own heaviest tokens: few tokens reach an expert, each of them a direction with a curvature far
above the damping. `_HEAVIEST` of them are taken exactly, beside the share ρ of the mass that is left for C,

    B_e = K_e + coupling · Σ_t q_te x_t x_tᵀ,

inverted by Woodbury's identity: a matrix over its tokens an expert. Scaling by each expert's whole diagonal instead of
its mass looks more exact and is worse. With several processes, which hold different tokens, the factor is used alone.

Constant direction. H 1 = 0: adding one vector u to every expert's row is seen by damping alone,
Λ̃ (1 uᵀ) = damping · D ∘ (1 uᵀ), so the coarse operator on u is the diagonal Σ_e damping · D_e, inverted by one
division. Blocks B and coarse inverse Q are joined multiplicatively (balancing), which costs no product with Λ̃:

    M⁻¹ = Q + (I − Q Λ̃) B⁻¹ (I − Λ̃ Q)

With damping = 0 the direction is in the null space; then it is projected out instead.
"""

from typing import Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harc.solver.operator import PrecisionOperator
from harc.solver.sampled_gram import (
    INT8_PAYS,
    curvatures,
    draw,
    sampled_gram,
    sampled_gram_int8,
    share_of_process,
    token_norms,
)
from harc.solver.settings import PreconditionerName

_SAMPLED = 3  # tokens for an expert's block, in hidden sizes: 2 takes a fifth more iterations, 4 a sixth less
_LEAST_SAMPLED = 2048
_PRODUCTS = 60  # what building the expert blocks may cost, in products with Λ̃ (about what the blocks save)
_LEAST_BYTES = 1 << 28  # memory that expert blocks may always take; beyond it, a fifth of the features
_TOGETHER = 16  # experts whose weights for drawing are held at once
_HEAVIEST = 32  # tokens an expert that the shared factor takes exactly
_WORTH = 0.02  # of an expert's mass: heaviest tokens that have less, of all experts in the mean, are left out


class Preconditioner(Protocol):
    """An approximate inverse: name, and the map from a residual to a correction."""

    name: str

    def __call__(self, r: Float[Tensor, "experts hidden"]) -> Float[Tensor, "experts hidden"]:
        """Applies M⁻¹ to a residual."""
        ...


def make_preconditioner(
    operator: PrecisionOperator, name: PreconditionerName = "auto", *, sampled: int | None = None, seed: int = 0
) -> Preconditioner:
    """Builds a preconditioner. sampled: tokens that a factor is estimated from.

    Raises:
        ValueError: an unknown name.
    """
    hidden = operator.shape[1]
    if name == "auto":
        name = "blocks" if _blocks_pay(operator, sampled or max(_SAMPLED * hidden, _LEAST_SAMPLED)) else "shared"
    if name == "none":
        return _Identity(operator)
    if name == "diagonal":
        return _Diagonal(operator)
    if name == "shared":
        return SharedFactor(operator, sampled or max(8 * hidden, _LEAST_SAMPLED), seed)
    if name == "blocks":
        return ExpertBlocks(operator, sampled or max(_SAMPLED * hidden, _LEAST_SAMPLED), seed)
    raise ValueError(f"preconditioner {name!r}: expected one of {', '.join(get_args(PreconditionerName))}")


def _blocks_pay(operator: PrecisionOperator, sampled: int) -> bool:
    """Whether expert blocks are worth their building and fit beside the features."""
    experts, hidden = operator.shape
    tokens = sum(len(domain.features) for domain in operator.domains)
    building = min(sampled, tokens) * hidden**2 + 2 * hidden**3
    features = sum(domain.features.numel() * domain.features.element_size() for domain in operator.domains)
    fits = experts * hidden**2 * operator.dtype.itemsize <= max(_LEAST_BYTES, features / 5)
    return fits and building <= _PRODUCTS * 4 * tokens * hidden


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


class _TwoLevel:
    """Joins the factors of a subclass, `_solve`, with the constant direction."""

    def __init__(self, operator: PrecisionOperator) -> None:
        self._coupled, self._singular = operator.coupled, operator.singular
        self._damped = (operator.damping * operator.diagonal).to(operator.dtype)
        self._coarse = _safe_inverse(operator.damping * operator.diagonal.sum(0)).to(operator.dtype)

    def __call__(self, r: Tensor) -> Tensor:
        """Applies M⁻¹ to a residual."""
        if not self._coupled:
            return self._solve(r)
        if self._singular:
            out = self._solve(r - r.mean(0))
            return out - out.mean(0)
        constant = r.sum(0) * self._coarse  # Q r = 1 ⊗ constant
        out = self._solve(r - self._damped * constant)
        overlap = (self._damped * out).sum(0) * self._coarse  # Q Λ̃ out
        return out + (constant - overlap)

    def _solve(self, r: Tensor) -> Tensor:
        raise NotImplementedError


class ExpertBlocks(_TwoLevel):
    """One factor an expert."""

    name = "blocks"

    def __init__(self, operator: PrecisionOperator, sampled: int, seed: int = 0) -> None:
        super().__init__(operator)
        experts, hidden = operator.shape
        inverse = _safe_inverse(operator.diagonal).to(operator.dtype)
        self._scale = inverse.sqrt()
        self._inverse = torch.empty(experts, hidden, hidden, dtype=operator.dtype, device=operator.device)
        count = share_of_process(operator, sampled)
        tokens = sum(round(1 / domain.weight) for domain in operator.domains)
        fast = INT8_PAYS and operator.dtype == torch.float32 and operator.device.type == "cpu"
        for first in range(0, experts, _TOGETHER):
            chunk = slice(first, first + _TOGETHER)
            q = curvatures(operator, chunk)
            norms = token_norms(operator, inverse[chunk])
            for row in range(len(q)):
                expert = first + row
                if fast and sampled < tokens:
                    gram = sampled_gram_int8(operator, q[row], norms[row], self._scale[expert], count)
                else:
                    chosen, pi = draw(q[row] * norms[row], count, seed + expert)
                    gram = sampled_gram(operator, chosen, q[row][chosen] / pi)
                self._inverse[expert] = _invert(gram, operator.coupling, operator.damping)

    def _solve(self, r: Tensor) -> Tensor:
        r = self._scale * r
        if r.is_cuda:
            return self._scale * torch.bmm(self._inverse, r.unsqueeze(2)).squeeze(2)
        rows = zip(self._inverse, r, strict=True)  # a batched product of single columns takes twice as long here
        return self._scale * torch.stack([torch.mv(inverse, row) for inverse, row in rows])


class SharedFactor(_TwoLevel):
    """One factor for all experts, each with its own mass and its heaviest tokens."""

    name = "shared"

    def __init__(self, operator: PrecisionOperator, sampled: int, seed: int = 0, heaviest: int = _HEAVIEST) -> None:
        super().__init__(operator)
        experts, hidden = operator.shape
        chunks = [slice(first, first + _TOGETHER) for first in range(0, experts, _TOGETHER)]
        total = torch.stack([curvatures(operator, chunk).sum(0) for chunk in chunks]).sum(0)
        count = share_of_process(operator, sampled)
        chosen, pi = draw(total, count, seed)
        gram = sampled_gram(operator, chosen, total[chosen] / pi)
        inverse = _safe_inverse(gram.diagonal().clone())
        mass = (operator.diagonal * inverse).sum(1, keepdim=True) / (inverse > 0).sum().clamp(min=1)
        scale = inverse.sqrt()
        self._scale = scale * _safe_inverse(mass).sqrt().to(operator.dtype)
        own = heaviest if count == sampled else 0  # the only process
        tokens, weights = _heaviest_tokens(operator, inverse, mass, min(own, len(total)))
        captured = float(weights.sum(1).mean()) if own else 0.0
        if captured < _WORTH:
            tokens, weights, captured = tokens[:, :0], weights[:, :0], 0.0
        rest = max(1 - captured, _WORTH)
        self._inverse = _invert(gram, operator.coupling * rest, operator.damping)
        # Woodbury: with u = K⁻¹ r,  B⁻¹ r = u − K⁻¹ Xᵀ (I + X K⁻¹ Xᵀ)⁻¹ X u, all in the factor's scale
        held = tokens.shape[1]
        self._rows = torch.zeros(experts, held, hidden, dtype=operator.dtype, device=operator.device)
        self._small = torch.zeros(experts, held, held, dtype=operator.dtype, device=operator.device)
        lengths = _lengths(operator, inverse)
        for expert, (chosen, weight) in enumerate(zip(tokens, weights, strict=True)):
            factor = operator.coupling * weight * hidden * _safe_inverse(lengths)[chosen]
            x = _rows_of(operator, chosen).mul_(scale).mul_(factor.sqrt()[:, None])
            small = (x @ self._inverse) @ x.T
            small.diagonal().add_(1)
            self._rows[expert], self._small[expert] = x, torch.linalg.inv(small)

    def _solve(self, r: Tensor) -> Tensor:
        u = (self._scale * r) @ self._inverse
        if not self._rows.shape[1]:
            return self._scale * u
        rows, small = self._rows, self._small
        if r.is_cuda:
            seen = (rows.mT @ (small @ (rows @ u[:, :, None])))[:, :, 0]
        else:  # as for the expert blocks
            seen = torch.stack([x.T @ (s @ (x @ row)) for x, s, row in zip(rows, small, u, strict=True)])
        return self._scale * (u - seen @ self._inverse)


def _heaviest_tokens(operator: PrecisionOperator, inverse: Tensor, mass: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each expert's tokens with the largest q ‖x‖² / mass, ‖x‖² = mean over j of x_j² / C_jj, and that weight."""
    lengths = _lengths(operator, inverse) / operator.shape[1]
    share = _safe_inverse(mass).to(operator.dtype)
    found = []
    for first in range(0, operator.shape[0], _TOGETHER):
        chunk = slice(first, first + _TOGETHER)
        found.append((curvatures(operator, chunk) * lengths * share[chunk]).topk(count, 1))
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def _lengths(operator: PrecisionOperator, inverse: Tensor) -> Tensor:
    """Σ_j x_j² / C_jj of every token."""
    return token_norms(operator, inverse[None])[0]


def _rows_of(operator: PrecisionOperator, tokens: Tensor) -> Tensor:
    """Features of tokens, counted through all domains, in the working precision."""
    out = torch.empty(len(tokens), operator.shape[1], dtype=operator.dtype, device=operator.device)
    start = 0
    for domain in operator.domains:
        here = (tokens >= start) & (tokens < start + len(domain.features))
        out[here] = domain.features[tokens[here] - start].to(operator.dtype)
        start += len(domain.features)
    return out


def _invert(gram: Tensor, coupling: float, damping: float) -> Tensor:
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


def _safe_inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is nothing beside its largest value: what no token sees stays as it is."""
    return torch.where(x > 1e-20 * x.max(), 1 / x, 0)
