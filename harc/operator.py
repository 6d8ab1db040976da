"""The precision matrix of router calibration as an operator: Λ̃ is never formed (METHOD sections 2 to 4).

Domain i has T_i tokens x (inputs of the merged model's router), a source router W_i, p = softmax(W_i x) and curvature
H(p) = diag(p) − p pᵀ. With q = p ∘ (1 − p):

    Λ V     = Σ_i 1/T_i Σ_x  (H(p) V x) xᵀ,         H(p) z = p ∘ z − p (pᵀ z)
    D       = diag(Λ),                               D_ej = Σ_i 1/T_i Σ_x q_e x_j²
    Λ̃ V     = α Λ V + (1 − α) D ∘ V                  or, with β,   Λ V + β D ∘ V
    b − Λ̃ W = Σ_i Λ̃_i (W_i − W)                      the residual at W; the right-hand side b is the residual at W = 0

A product is two matrix products over the features, a block of tokens at a time: 4 T E d operations, memory of a block.
Written with the difference W_i − W, the residual does not cancel; its sums over blocks are fp64. Work is fp32, or fp64
where the problem is so small that it costs nothing. Where features are stored in bf16 and the device multiplies it
faster (GPUs), products round V and H z to bf16 and accumulate in fp32, about three digits; residuals never do, and the
solver's refinement brings the answer to the same tolerance. Other curvatures: `diagonal` has H = diag(q); so have
sigmoid routers (independent Bernoulli), with p = sigmoid(W_i x). `identity` (H = I) needs no operator: see harc.solver.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harc.routers import Activation

Hessian = Literal["full", "diagonal", "identity"]
Reduce = Callable[[Tensor], Tensor]
_SMALL = 1 << 27  # tokens × experts × hidden up to which work is float64
_BLOCK_BYTES = 1 << 21  # features of a block in the working precision: small enough to stay in cache between passes
_BLOCK_BYTES_GPU = 1 << 28  # there a block should rather keep all multiprocessors busy


@dataclass(frozen=True)
class Domain:
    """One domain's statistics. weight: 1 / T_i; curvature: p for the coupled softmax Hessian, else q = p (1 − p)."""

    features: Float[Tensor, "tokens hidden"]
    router: Float[Tensor, "experts hidden"]
    curvature: Float[Tensor, "tokens experts"]
    weight: float


class PrecisionOperator:
    """Λ̃ of one layer over all its domains.

    Attributes: domains; coupling and damping (α and 1 − α, or 1 and β); coupled (whether H has the −p pᵀ part);
    diagonal (D, float64); rhs (b, float64); dtype: the working precision; fast: whether products are bf16.
    """

    def __init__(
        self,
        features: Sequence[Float[Tensor, "tokens hidden"]],
        routers: Sequence[Float[Tensor, "experts hidden"]],
        *,
        alpha: float = 0.9,
        beta: float | None = None,
        hessian: Hessian = "full",
        activation: Activation = "softmax",
        dtype: torch.dtype | None = None,
        reduce: Reduce | None = None,
        fast: bool | None = None,
    ) -> None:
        """Computes probabilities and diagonal in one pass. `reduce` sums a tensor over data-parallel processes.

        dtype: the working precision, by default chosen by size (see `working_dtype`). fast: products in bf16, by
        default for bf16 features on a GPU.

        Raises:
            ValueError: shapes that do not fit, a domain without tokens, values that are not finite.
        """
        check_inputs(features, routers, shared=reduce is not None)
        self.dtype = dtype or working_dtype(features, routers)
        self.device = features[0].device
        stored = {x.dtype for x in features} == {torch.bfloat16} and self.dtype == torch.float32
        self._may_be_fast = stored and (self.device.type == "cuda" if fast is None else fast)
        self.coupled = hessian == "full" and activation == "softmax"
        self.reduce: Reduce = reduce or (lambda tensor: tensor)
        self.shape = tuple(routers[0].shape)
        self.domains: list[Domain] = []
        self._diagonals: list[Tensor] = []
        for index, (x, router) in enumerate(zip(features, routers, strict=True)):
            self._add(index, x, router.to(self.device, self.dtype), activation)
        self.diagonal = torch.stack(self._diagonals).sum(0)
        self._regularise(alpha, beta)

    def regularised(self, alpha: float, beta: float | None = None) -> "PrecisionOperator":
        """The operator of another α or β over the same statistics, which are shared."""
        other = copy.copy(self)
        other._regularise(alpha, beta)
        return other

    def exact(self) -> "PrecisionOperator":
        """The operator with products in the working precision, over the same statistics."""
        other = copy.copy(self)
        other.fast = other._may_be_fast = False
        return other

    def _regularise(self, alpha: float, beta: float | None) -> None:
        self.coupling, self.damping = (alpha, 1 - alpha) if beta is None else (1.0, beta)
        self.fast = self._may_be_fast and not self.singular  # rounding would leave the space that Λ sees
        self.rhs = self.residual(torch.zeros(self.shape, dtype=torch.float64, device=self.device))

    @property
    def singular(self) -> bool:
        """Whether the direction that adds one vector to every expert is in the null space."""
        return self.coupled and self.damping == 0

    def product(self, v: Float[Tensor, "experts hidden"]) -> Float[Tensor, "experts hidden"]:
        """The product Λ̃ V in the working precision; about three digits of it if `fast`."""
        out = (self.damping * self.diagonal).to(v.dtype) * v
        if not self.coupling:
            return out
        total = torch.zeros_like(v)
        for domain in self.domains:
            part = torch.zeros_like(v)
            if self.fast:
                rounded = v.bfloat16().T
                for x, c in zip(self._split(domain.features), self._split(domain.curvature), strict=True):
                    part += matmul_bf16(self._bend(c, matmul_bf16(x, rounded)).bfloat16().T, x)
            else:
                for x, c in self.blocks(domain):
                    part.addmm_(self._bend(c, x @ v.T).T, x)
            total.add_(part, alpha=domain.weight)
        return out.add_(self.reduce(total), alpha=self.coupling)

    def residual(self, w: Float[Tensor, "experts hidden"]) -> Float[Tensor, "experts hidden"]:
        """The residual b − Λ̃ W in float64, from W in float64."""
        damped, total = torch.zeros_like(w), torch.zeros_like(w)
        for domain, diagonal in zip(self.domains, self._diagonals, strict=True):
            away = domain.router.double() - w
            damped += diagonal * away
            if self.coupling:
                away = away.to(self.dtype)
                part = torch.zeros_like(w)
                for x, c in self.blocks(domain):
                    part += self._bend(c, x @ away.T).T @ x
                total += domain.weight * part
        return self.damping * damped + self.coupling * self.reduce(total)

    def blocks(self, domain: Domain) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (features in the working precision, curvature) of consecutive tokens."""
        yield from zip(token_blocks(domain.features, self.dtype), self._split(domain.curvature), strict=True)

    def _split(self, per_token: Tensor) -> tuple[Tensor, ...]:
        return per_token.split(block_tokens(self.shape[1], self.dtype, self.device))

    def _bend(self, c: Tensor, z: Tensor) -> Tensor:
        """H(p) z for a block of tokens, in place."""
        z *= c
        return z.addcmul_(c, z.sum(1, keepdim=True), value=-1) if self.coupled else z

    def _add(self, index: int, x: Tensor, router: Tensor, activation: Activation) -> None:
        count = float(self.reduce(torch.tensor(float(len(x)), dtype=torch.float64)))
        if not count:
            raise ValueError(f"domain {index}: no tokens")
        weight = 1 / count
        curvature = torch.empty(len(x), len(router), dtype=self.dtype, device=self.device)
        diagonal = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        for block, c in zip(token_blocks(x, self.dtype), self._split(curvature), strict=True):
            logits = block @ router.T
            p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
            q = p * (1 - p)
            c.copy_(p if self.coupled else q)
            diagonal += q.T @ block.square()
        diagonal = self.reduce(diagonal) * weight
        if not torch.isfinite(diagonal).all():
            raise ValueError(_where_not_finite(index, x))
        self.domains.append(Domain(x, router, curvature, weight))
        self._diagonals.append(diagonal)


def check_inputs(features: Sequence[Tensor], routers: Sequence[Tensor], *, shared: bool = False) -> None:
    """Holds features (one (tokens, hidden) a domain) against routers (one (experts, hidden) a domain).

    shared: a data-parallel process may hold no token of a domain.

    Raises:
        ValueError: naming the domain and what was found.
    """
    if not features or len(features) != len(routers):
        raise ValueError(f"expected features and a router for every domain, found {len(features)} and {len(routers)}")
    experts_hidden = tuple(routers[0].shape)
    for index, (x, router) in enumerate(zip(features, routers, strict=True)):
        if router.ndim != 2 or tuple(router.shape) != experts_hidden:
            raise ValueError(f"domain {index}: router of shape {tuple(router.shape)}, expected {experts_hidden}")
        if x.ndim != 2 or x.shape[1] != router.shape[1]:
            raise ValueError(
                f"domain {index}: features of shape {tuple(x.shape)}, expected (tokens, {router.shape[1]})"
            )
        if not len(x) and not shared:
            raise ValueError(f"domain {index}: no tokens")
        if not torch.isfinite(router).all():
            raise ValueError(f"domain {index}: NaN or Inf in the source router")


def working_dtype(features: Sequence[Tensor], routers: Sequence[Tensor]) -> torch.dtype:
    """float64 for float64 features and for small problems, else float32."""
    small = sum(len(x) for x in features) * routers[0].numel() <= _SMALL
    return torch.float64 if small or features[0].dtype == torch.float64 else torch.float32


def block_tokens(hidden: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many tokens make a block."""
    room = _BLOCK_BYTES if device.type == "cpu" else _BLOCK_BYTES_GPU
    return max(64, room // (hidden * dtype.itemsize))


def matmul_bf16(a: Tensor, b: Tensor) -> Tensor:
    """The product of two bf16 matrices, accumulated and returned in fp32 (which torch has on GPUs only)."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def token_blocks(x: Float[Tensor, "tokens hidden"], dtype: torch.dtype) -> Iterator[Float[Tensor, "block hidden"]]:
    """Yields consecutive tokens, upcast to `dtype` a block at a time, each valid until the next: they share memory."""
    size = block_tokens(x.shape[1], dtype, x.device)
    room = None if x.dtype == dtype else torch.empty(min(size, len(x)), x.shape[1], dtype=dtype, device=x.device)
    for block in x.split(size):
        yield block if room is None else room[: len(block)].copy_(block)


def _where_not_finite(index: int, x: Tensor) -> str:
    start = 0
    for block in token_blocks(x, torch.float32):
        bad = (~torch.isfinite(block).all(1)).nonzero()
        if len(bad):
            return f"domain {index}: NaN or Inf in the features of token {start + int(bad[0])}"
        start += len(block)
    return f"domain {index}: the features are too large: their squares overflow"
