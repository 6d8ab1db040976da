"""Gram matrices Σ q x xᵀ estimated from few tokens, for preconditioners.

Tokens are drawn without replacement with inclusion probability π ∝ q_e Σ_j x_j² / D_ej (at most 1; tokens that reach 1
are always in) and weighted by q_e / π. The norm is the one in which a preconditioner's blocks have unit diagonal:
tokens that are long in it are most of the estimate's variance (drawing by q_e alone needs 36 iterations where this
needs 31).

In fp32 on an x86 CPU with AVX-512 the products are int8, about four times as fast (with AVX2 alone they take 57 times
as long as fp32). Quantisation adds some
(_CLIP / _LEVELS)² / 12 = 1e-3 to the unit diagonal, little beside the damping.
"""

import torch
from torch import Tensor

from harc.solver.operator import PrecisionOperator, token_blocks

INT8_PAYS = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and torch.backends.mkldnn.is_available()
_LEVELS = 63  # of int8 that are used: twice as many overflow 16 bits on processors without VNNI
_CLIP = 8  # the largest entry kept, in root mean squares of a token that is drawn, not certain


def curvatures(operator: PrecisionOperator, experts: slice) -> Tensor:
    """Curvatures q = p (1 − p), each domain's times its weight: (experts, tokens of all domains)."""
    parts = []
    for domain in operator.domains:
        parts.append(domain.q(experts).T.contiguous() * domain.weight)
    return torch.cat(parts, 1)


def token_norms(operator: PrecisionOperator, inverse: Tensor) -> Tensor:
    """Σ_j x_j² / D_ej of every token, (experts, tokens of all domains); inverse: 1 / D, a row an expert."""
    blocks = (token_blocks(domain.features, operator.dtype) for domain in operator.domains)
    return torch.cat([inverse @ x.square().T for domain in blocks for x in domain], 1)


def share_of_process(operator: PrecisionOperator, sampled: int) -> int:
    """This process's part of the tokens to draw."""
    processes = round(float(operator.reduce(torch.ones(1, dtype=torch.float64))))
    return -(-sampled // processes)


def draw(weights: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
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


def sampled_gram(operator: PrecisionOperator, chosen: Tensor, factors: Tensor) -> Tensor:
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
    gram[operator.free :] = gram[:, operator.free :] = 0
    return gram.triu_().add_(gram.triu(1).T)


def _add_gram(gram: Tensor, x: Tensor, bands: int = 4) -> None:
    """Adds xᵀ x to the upper triangle, in bands of rows: five eighths of the full product's work."""
    width = -(-gram.shape[0] // bands)
    for start in range(0, gram.shape[0], width):
        gram[start : start + width, start:].addmm_(x[:, start : start + width].T, x[:, start:])


def sampled_gram_int8(operator: PrecisionOperator, q: Tensor, norms: Tensor, scale: Tensor, count: int) -> Tensor:
    """S E[q_e x xᵀ] S of all processes from about `count` tokens in int8; S = diag(scale), norms: ‖S x‖².

    Tokens are drawn as in `draw`, π = min(1, c · weight), weight = q · norm. Then √(c q / π) S x has length 1, a token
    that is always in √(c · weight): one step of quantisation fits all. It draws by itself, at the middle of each step:
    `draw` and its random start take a tenth more time and an iteration more on the real features.
    """
    if not len(q):  # a data-parallel process without tokens
        return operator.reduce(torch.zeros(len(scale), len(scale), dtype=operator.dtype))
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
