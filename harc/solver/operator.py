"""The precision matrix of router calibration as an operator: Λ̃ is never formed (METHOD sections 2 to 4).

Domain i has T_i tokens x (inputs of the merged model's router), a source router W_i, p = softmax(W_i x) and curvature
H(p) = diag(p) − p pᵀ. With q = p ∘ (1 − p):

    Λ V     = Σ_i 1/T_i Σ_x  (H(p) V x) xᵀ,         H(p) z = p ∘ z − p (pᵀ z)
    D       = diag(Λ),                               D_ej = Σ_i 1/T_i Σ_x q_e x_j²
    Λ̃ V     = α Λ V + (1 − α) D ∘ V                  or, with β,   Λ V + β D ∘ V
    b − Λ̃ W = Σ_i Λ̃_i (W_i − W)                      the residual at W; the right-hand side b is the residual at W = 0

With targets, logits z of each token that W_i x is not (the source's on its own inputs), p = softmax(z), and what is
minimised is α times the quadratic form plus a diagonal part that stays anchored at the source routers:

    Σ_i  α · ½ E[ (z − W x)ᵀ H(p) (z − W x) ]  +  (1 − α) · ½ Σ_ej D_i,ej (W_i − W)²_ej           (β: 1 and β)
    b − Λ̃ W = Σ_i Λ̃_i (W_i − W) + α S_i,         S_i = E[ H(p) (z − W_i x) xᵀ ]

The operator is the same, the shift S does not depend on W, and z = W_i x gives S = 0, the case above. At α = 1 this is
the exact minimum of the quadratic form; below, the damping shrinks towards the sources as it does without targets.

Columns of W can be held fixed, such as a router's bias, the weight of a feature that is always 1: the operator is then
that of the others, and the right-hand side the residual where the others are 0.

A product is two matrix products over the features, a block of tokens at a time: 4 T E d operations, memory of a block.
Written with the difference W_i − W, the residual does not cancel; its sums over blocks are fp64. Work is fp32, or fp64
where the problem is so small that it costs nothing. Where features are stored in bf16 and the device multiplies it
faster (GPUs), products round V and H z to bf16 and accumulate in fp32, about three digits; residuals never do, and the
solver's refinement brings the answer to the same tolerance. Other curvatures: `diagonal` has H = diag(q); so have
sigmoid routers (independent Bernoulli), with p = sigmoid(W_i x). `identity` (H = I) needs no operator: see
harc.solver.identity.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.models.routers import Activation
from harc.solver.curvature import Domain, bend, probabilities, source_logits
from harc.solver.settings import Hessian

Reduce = Callable[[Tensor], Tensor]
_SMALL = 1 << 27  # tokens × experts × hidden up to which work is float64
_BLOCK_BYTES = 1 << 21  # features of a block in the working precision: small enough to stay in cache between passes
_BLOCK_BYTES_GPU = 1 << 28  # there a block should rather keep all multiprocessors busy


class PrecisionOperator:
    """Λ̃ of one layer over all its domains.

    Attributes: domains; coupling and damping (α and 1 − α, or 1 and β); coupled (whether H has the −p pᵀ part);
    diagonal (D, float64); rhs (b, float64); dtype: the working precision; fast: whether products are bf16; fixed:
    values of W's last columns that stay (float64), or None; free: how many columns do not.
    """

    def __init__(
        self,
        features: Sequence[Float[Tensor, "tokens hidden"]],
        routers: Sequence[Float[Tensor, "experts hidden"]],
        targets: Sequence[Float[Tensor, "tokens experts"]] | None = None,
        *,
        alpha: float = 0.9,
        beta: float | None = None,
        hessian: Hessian = "full",
        activation: Activation = "softmax",
        dtype: torch.dtype | None = None,
        reduce: Reduce | None = None,
        fast: bool | None = None,
        fixed: Float[Tensor, "experts columns"] | None = None,
        plain: bool = False,
    ) -> None:
        """Computes probabilities, diagonal and shift in one pass. `reduce` sums a tensor over data-parallel processes.

        dtype: the working precision, by default chosen by size (see `working_dtype`). fast: products in bf16, by
        default for bf16 features on a GPU. targets: target logits of each domain; None: W_i x. fixed: values
        that the last columns of W keep. plain: p, 1 − p and H(p) z as they are written, without what keeps the digits
        of saturated routing (harc.solver.curvature), as the published solver has them.

        Raises:
            ValueError: shapes that do not fit, a domain without tokens, values that are not finite.
        """
        check_inputs(features, routers, targets, shared=reduce is not None)
        self.dtype = self._residual_dtype = dtype or working_dtype(features, routers)
        self.device = features[0].device
        stored = {x.dtype for x in features} == {torch.bfloat16} and self.dtype == torch.float32
        self._may_be_fast = stored and (self.device.type == "cuda" if fast is None else fast)
        self._plain = plain
        self.coupled = hessian == "full" and activation == "softmax"
        self.reduce: Reduce = reduce or (lambda tensor: tensor)
        self.shape = tuple(routers[0].shape)
        self.fixed = None if fixed is None else fixed.to(self.device, torch.float64)
        self.free = self.shape[1] - (0 if fixed is None else fixed.shape[1])
        self.domains: list[Domain] = []
        self._diagonals: list[Tensor] = []
        self._shift: Tensor | None = None
        for index, (x, router) in enumerate(zip(features, routers, strict=True)):
            target = None if targets is None else targets[index]
            self._add(index, x, router.to(self.device, self.dtype), activation, target)
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

    def wide(self) -> "PrecisionOperator":
        """The operator with residuals in float64 throughout, over the same statistics: a product then costs twice."""
        other = self.exact()
        other._residual_dtype = torch.float64
        return other

    @property
    def is_wide(self) -> bool:
        """Whether residuals are float64 throughout."""
        return self._residual_dtype == torch.float64

    def _regularise(self, alpha: float, beta: float | None) -> None:
        self.coupling, self.damping = coupling_and_damping(alpha, beta)
        self.fast = self._may_be_fast and not self.singular  # rounding would leave the space that Λ sees
        origin = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        if self.fixed is not None:
            origin[:, self.free :] = self.fixed
        self.rhs = self.residual(origin)

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
                for x, (c, top) in zip(self._split(domain.features), self._curvature(domain), strict=True):
                    part += matmul_bf16(self._bend(c, top, matmul_bf16(x, rounded)).bfloat16().T, x)
            else:
                for x, (c, top) in zip(token_blocks(domain.features, self.dtype), self._curvature(domain), strict=True):
                    part.addmm_(self._bend(c, top, x @ v.T).T, x)
            total.add_(part, alpha=domain.weight)
        return self._only_free(out.add_(self.reduce(total), alpha=self.coupling))

    def residual(self, w: Float[Tensor, "experts hidden"]) -> Float[Tensor, "experts hidden"]:
        """The residual b − Λ̃ W in float64, from W in float64."""
        total = self.summed([domain.router.double() - w for domain in self.domains])
        return total if self._shift is None else self._only_free(total + self.coupling * self._shift)

    def summed(self, vs: Sequence[Float[Tensor, "experts hidden"]]) -> Float[Tensor, "experts hidden"]:
        """The sum Σ_i Λ̃_i V_i of one V_i per domain, float64: products in the working precision, sums in float64."""
        damped, total = torch.zeros_like(vs[0]), torch.zeros_like(vs[0])
        for domain, diagonal, v in zip(self.domains, self._diagonals, vs, strict=True):
            damped += diagonal * v
            if self.coupling:
                work = self._residual_dtype
                rounded = v.to(work)
                part = torch.zeros_like(v)
                blocks = zip(token_blocks(domain.features, work), self._curvature(domain, work), strict=True)
                for x, (c, top) in blocks:
                    part += self._bend(c.to(work), top, x @ rounded.T).T @ x
                total += domain.weight * part
        return self._only_free(self.damping * damped + self.coupling * self.reduce(total))

    def _split(self, per_token: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        return per_token.split(block_tokens(self.shape[1], dtype or self.dtype, self.device))

    def _curvature(self, domain: Domain, dtype: torch.dtype | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Curvature and top expert of the blocks of tokens that features of `dtype` make."""
        parts = self._split(domain.curvature, dtype)
        tops = [None] * len(parts) if domain.top is None else self._split(domain.top, dtype)
        yield from zip(parts, tops, strict=True)

    def _bend(self, c: Tensor, top: Tensor | None, z: Tensor) -> Tensor:
        """H z of a block of tokens, in place."""
        return bend(c, None if self._plain else top, z) if self.coupled else z.mul_(c)

    def _only_free(self, v: Tensor) -> Tensor:
        if self.fixed is not None:
            v[:, self.free :] = 0
        return v

    def _add(self, index: int, x: Tensor, router: Tensor, activation: Activation, target: Tensor | None) -> None:
        count = float(self.reduce(torch.tensor(float(len(x)), dtype=torch.float64)))
        if not count:
            raise ValueError(f"domain {index}: no tokens")
        weight = 1 / count
        curvature = torch.empty(len(x), len(router), dtype=self.dtype, device=self.device)
        top = torch.zeros(len(x), 1, dtype=torch.int64, device=self.device)
        others = torch.empty(len(x), 1, dtype=self.dtype, device=self.device)
        diagonal = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        shift = torch.zeros_like(diagonal)
        asked = [None] * len(self._split(curvature)) if target is None else self._split(target)
        parts = zip(*(self._split(one) for one in (curvature, top, others)), strict=True)
        for block, (c, t, o), z in zip(token_blocks(x, self.dtype), parts, asked, strict=True):
            own = block @ router.T if self._plain else source_logits(block, router)
            logits = own if z is None else z.to(own.device, own.dtype)
            p, q = probabilities(logits, activation, t, o)
            if self._plain:
                q = p * (1 - p)
            c.copy_(p if self.coupled else q)
            diagonal += q.to(self.dtype).T @ block.square()
            if z is not None:
                bent = self._bend(c.to(own.dtype), t, logits - own)
                shift += bent.to(self.dtype).T @ block
        diagonal = self._only_free(self.reduce(diagonal) * weight)
        if target is not None:
            shift = self.reduce(shift) * weight
            self._shift = shift if self._shift is None else self._shift + shift
        if not torch.isfinite(diagonal).all():
            raise ValueError(_where_not_finite(index, x))
        self.domains.append(Domain(x, router, curvature, weight, *((top, others) if self.coupled else ())))
        self._diagonals.append(diagonal)


def coupling_and_damping(alpha: float, beta: float | None) -> tuple[float, float]:
    """What Λ and diag Λ are multiplied by: α and 1 − α, or with β 1 and β."""
    return (alpha, 1 - alpha) if beta is None else (1.0, beta)


def last_columns(w: Float[Tensor, "experts hidden"], count: int) -> Float[Tensor, "experts columns"] | None:
    """What `fixed` of the operator is where the last columns of W stay; None where none do."""
    return w[:, w.shape[1] - count :] if count else None


def check_inputs(
    features: Sequence[Tensor],
    routers: Sequence[Tensor],
    targets: Sequence[Tensor] | None = None,
    *,
    shared: bool = False,
) -> None:
    """Holds each domain's features (tokens, hidden), router (experts, hidden) and targets (tokens, experts) together.

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
    if targets is None:
        return
    if len(targets) != len(features):
        raise ValueError(f"expected target logits for every domain, found {len(targets)} for {len(features)} domains")
    for index, (x, target) in enumerate(zip(features, targets, strict=True)):
        if tuple(target.shape) != (len(x), experts_hidden[0]):
            raise ValueError(
                f"domain {index}: target logits of shape {tuple(target.shape)}, "
                f"expected (tokens, experts) = ({len(x)}, {experts_hidden[0]})"
            )
        if not torch.isfinite(target).all():
            raise ValueError(f"domain {index}: NaN or Inf in the target logits")


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
