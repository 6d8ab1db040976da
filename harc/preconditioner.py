"""Preconditioners for Λ̃: factors over the hidden dimension for the experts, and the constant direction solved exactly.

Expert blocks. The block of Λ̃ at (e, e) is  B_e = coupling · E[q_e x xᵀ] + damping · diag(D_e),  q = p (1 − p). It is
estimated from m tokens an expert, drawn without replacement with inclusion probability π ∝ q_e Σ_j x_j² / D_ej (at most
1; tokens that reach 1 are always in), weighted by q_e / π, and rescaled to the diagonal D_e, which is known exactly.
The norm in π is the one in which the blocks have unit diagonal: tokens that are long in it are most of the estimate's
variance (drawing by q_e alone needs 36 iterations where this needs 31). Building takes E m d² operations whatever the
number of tokens; with m at least the number of tokens the blocks are exact. In fp32 on a CPU the products are int8,
about four times as fast: quantisation adds some (_CLIP / _LEVELS)² / 12 = 1e-3 to the unit diagonal, little beside the
damping.

Shared factor. Where d is large and tokens are few, E factors of d × d cost more than they save. Then the experts share
the covariance C of tokens drawn by their total curvature, each with its own mass:  B_e = mass_e (coupling · C + damping
· diag(C)),  mass_e = mean over j of D_ej / C_jj. Scaling by each expert's whole diagonal instead looks more exact and
is worse, 75 iterations for 33: with few tokens an expert its diagonal is noise. One d × d factor, m d² operations.

Constant direction. H 1 = 0: adding one vector u to every expert's row is seen by damping alone,
Λ̃ (1 uᵀ) = damping · D ∘ (1 uᵀ), so the coarse operator on u is the diagonal Σ_e damping · D_e, inverted by one
division. Blocks B and coarse inverse Q are joined multiplicatively (balancing), which costs no product with Λ̃:

    M⁻¹ = Q + (I − Q Λ̃) B⁻¹ (I − Λ̃ Q)

With damping = 0 the direction is in the null space; then it is projected out instead.
"""

from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harc.operator import PrecisionOperator, token_blocks

PreconditionerName = Literal["auto", "blocks", "shared", "diagonal", "none"]

_SAMPLED = 3  # tokens for an expert's block, in hidden sizes: 2 takes a fifth more iterations, 4 a sixth less
_LEAST_SAMPLED = 2048
_PRODUCTS = 60  # what building the expert blocks may cost, in products with Λ̃ (about what the blocks save)
_LEAST_BYTES = 1 << 28  # memory that expert blocks may always take; beyond it, a fifth of the features
_LEVELS = 63  # of int8 that are used: twice as many overflow 16 bits on processors without VNNI
_CLIP = 8  # the largest entry kept, in root mean squares of a token that is drawn, not certain
_TOGETHER = 16  # experts whose weights for drawing are held at once


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
        count = _share(operator, sampled)
        tokens = sum(round(1 / domain.weight) for domain in operator.domains)
        eight_bits = sampled < tokens and operator.dtype == torch.float32 and operator.device.type == "cpu"
        for first in range(0, experts, _TOGETHER):
            chunk = slice(first, first + _TOGETHER)
            q = _curvatures(operator, chunk)
            norms = _norms(operator, inverse[chunk])
            for row in range(len(q)):
                expert = first + row
                if eight_bits:
                    gram = _gram_int8(operator, q[row], norms[row], self._scale[expert], count)
                else:
                    chosen, pi = _draw(q[row] * norms[row], count, seed + expert)
                    gram = _gram(operator, chosen, q[row][chosen] / pi)
                self._inverse[expert] = _invert(gram, operator.coupling, operator.damping)

    def _solve(self, r: Tensor) -> Tensor:
        r = self._scale * r
        if r.is_cuda:
            return self._scale * torch.bmm(self._inverse, r.unsqueeze(2)).squeeze(2)
        rows = zip(self._inverse, r, strict=True)  # a batched product of single columns takes twice as long here
        return self._scale * torch.stack([torch.mv(inverse, row) for inverse, row in rows])


class SharedFactor(_TwoLevel):
    """One factor for all experts, each with its own mass."""

    name = "shared"

    def __init__(self, operator: PrecisionOperator, sampled: int, seed: int = 0) -> None:
        super().__init__(operator)
        q = _curvatures(operator, slice(None)).sum(0)
        chosen, pi = _draw(q, _share(operator, sampled), seed)
        gram = _gram(operator, chosen, q[chosen] / pi)
        inverse = _safe_inverse(gram.diagonal().clone())
        mass = (operator.diagonal * inverse).sum(1, keepdim=True) / (inverse > 0).sum().clamp(min=1)
        self._scale = inverse.sqrt() * _safe_inverse(mass).sqrt().to(operator.dtype)
        self._inverse = _invert(gram, operator.coupling, operator.damping)

    def _solve(self, r: Tensor) -> Tensor:
        return self._scale * ((self._scale * r) @ self._inverse)


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


def _gram_int8(operator: PrecisionOperator, q: Tensor, norms: Tensor, scale: Tensor, count: int) -> Tensor:
    """S E[q_e x xᵀ] S of all processes from about `count` tokens in int8; S = diag(scale), norms: ‖S x‖².

    Tokens are drawn as in `_draw`, π = min(1, c · weight), weight = q · norm. Then √(c q / π) S x has length 1, a token
    that is always in √(c · weight): one step of quantisation fits all.
    """
    count = min(count, len(q))
    weights = (q * norms).double()
    factor = count / weights.sum().clamp(min=1e-300)
    for _ in range(3):  # c, such that the inclusion probabilities sum to `count`
        factor = factor * (count / (factor * weights).clamp_(max=1).sum().clamp(min=1))
    weights *= factor
    edges = weights.clamp(max=1).cumsum(0)
    steps = torch.arange(int(edges[-1] + 0.5), dtype=torch.float64) + 0.5
    chosen = torch.searchsorted(edges, steps.clamp_(max=edges[-1])).unique_consecutive()
    length = weights[chosen].clamp_(min=1).sqrt_().to(q.dtype)
    clip = max(_CLIP, _CLIP / 2 * float(length.max())) if len(chosen) else _CLIP
    level = len(scale) ** 0.5 * _LEVELS / clip
    length *= level * norms[chosen].rsqrt()
    rows = torch.zeros(max(len(chosen), count + 16), len(scale), dtype=torch.int8)  # each new shape is compiled for
    start = first = 0
    for domain in operator.domains:
        cut = int(torch.searchsorted(chosen, start + len(domain.features)))
        x = domain.features[chosen[first:cut] - start].to(operator.dtype).mul_(scale)
        rows[first:cut] = x.mul_(length[first:cut, None]).round_().clamp_(-_LEVELS, _LEVELS)
        start, first = start + len(domain.features), cut
    return operator.reduce(torch._int_mm(rows.T, rows).to(operator.dtype).div_(factor * level**2))


def _curvatures(operator: PrecisionOperator, experts: slice) -> Tensor:
    """Curvatures q = p (1 − p), each domain's times its weight: (experts, tokens of all domains)."""
    parts = []
    for domain in operator.domains:
        c = domain.curvature[:, experts].T.contiguous()
        parts.append((c * (1 - c) if operator.coupled else c) * domain.weight)
    return torch.cat(parts, 1)


def _norms(operator: PrecisionOperator, inverse: Tensor) -> Tensor:
    """Σ_j x_j² / D_ej of every token, (experts, tokens of all domains); inverse: 1 / D, a row an expert."""
    blocks = (token_blocks(domain.features, operator.dtype) for domain in operator.domains)
    return torch.cat([inverse @ x.square().T for domain in blocks for x in domain], 1)


def _share(operator: PrecisionOperator, sampled: int) -> int:
    """This process's part of the tokens to draw."""
    processes = round(float(operator.reduce(torch.ones(1, dtype=torch.float64))))
    return -(-sampled // processes)


def _gram(operator: PrecisionOperator, chosen: Tensor, factors: Tensor) -> Tensor:
    """Σ factor · x xᵀ over the chosen tokens (counted through all domains), of all processes."""
    hidden = operator.shape[1]
    gram = torch.zeros(hidden, hidden, dtype=operator.dtype, device=operator.device)
    counts = [len(domain.features) for domain in operator.domains]
    ends = torch.tensor(counts, device=chosen.device).cumsum(0)
    cuts = torch.searchsorted(chosen, ends).tolist()
    start = first = 0
    for domain, count, cut in zip(operator.domains, counts, cuts, strict=True):
        rows, factor = chosen[first:cut] - start, factors[first:cut]
        for part, share in zip(rows.split(8192), factor.split(8192), strict=True):
            _add_gram(gram, domain.features[part].to(operator.dtype).mul_(share.sqrt()[:, None]))
        start, first = start + count, cut
    gram = operator.reduce(gram)
    return gram.triu_().add_(gram.triu(1).T)


def _add_gram(gram: Tensor, x: Tensor, bands: int = 4) -> None:
    """Adds xᵀ x to the upper triangle, in bands of rows: five eighths of the full product's work."""
    width = -(-gram.shape[0] // bands)
    for start in range(0, gram.shape[0], width):
        gram[start : start + width, start:].addmm_(x[:, start : start + width].T, x[:, start:])


def _draw(weights: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws about `count` indices, inclusion π = min(1, c · weight), systematically; returns them, sorted, and π."""
    if len(weights) <= count:
        return torch.arange(len(weights), device=weights.device), torch.ones_like(weights)
    pi = weights.double()
    if not pi.sum() > 0:
        return torch.empty(0, dtype=torch.int64, device=weights.device), weights[:0]
    pi = pi * (count / pi.sum())
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
    chosen = torch.searchsorted(edges, steps, right=True).clamp(max=len(weights) - 1).unique_consecutive()
    return chosen, pi[chosen].to(weights.dtype)


def _safe_inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is nothing beside its largest value: what no token sees stays as it is."""
    return torch.where(x > 1e-20 * x.max(), 1 / x, 0)
