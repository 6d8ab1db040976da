"""The curvature of routing, token by token: p and q = p (1 − p), and products with H(p) = diag(p) − p pᵀ.

Saturated routing keeps its digits: large logits are computed in float64, 1 − p of a token's largest p is the sum of the
others, and H(p) z takes z relative to that expert's, which changes nothing (H 1 = 0) but the rounding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harc.models.routers import Activation

_LARGE = 16.0  # logits beyond it are computed again in float64: their rounding is p's relative error


@dataclass(frozen=True)
class Domain:
    """One domain's statistics.

    weight: 1 / T_i; curvature: p for the coupled softmax Hessian, else q = p (1 − p); top, others: with p, each token's
    expert of the largest p, and 1 − p there (no value otherwise).
    """

    features: Float[Tensor, "tokens hidden"]
    router: Float[Tensor, "experts hidden"]
    curvature: Float[Tensor, "tokens experts"]
    weight: float
    top: Int[Tensor, "tokens one"] | None = None
    others: Float[Tensor, "tokens one"] | None = None

    def q(self, experts: slice) -> Float[Tensor, "tokens chosen"]:
        """The products p (1 − p) of some of the experts."""
        c = self.curvature[:, experts]
        if self.top is None or self.others is None:
            return c
        out = c * (1 - c)
        place = self.top[:, 0] - (experts.start or 0)
        rows = ((place >= 0) & (place < c.shape[1])).nonzero()[:, 0]
        out[rows, place[rows]] = c[rows, place[rows]] * self.others[rows, 0]
        return out


def source_logits(
    x: Float[Tensor, "tokens hidden"], router: Float[Tensor, "experts hidden"]
) -> Float[Tensor, "tokens experts"]:
    """Logits x Wᵀ of a block of tokens, in float64 where logits are large."""
    logits = x @ router.T
    if not logits.numel():
        return logits  # a process may have no tokens of a domain
    return logits if logits.abs().max() <= _LARGE else x.double() @ router.double().T  # NaN too, which is found later


def probabilities(
    logits: Float[Tensor, "tokens experts"],
    activation: Activation,
    top: Int[Tensor, "tokens one"],
    others: Float[Tensor, "tokens one"],
) -> tuple[Float[Tensor, "tokens experts"], Float[Tensor, "tokens experts"]]:
    """The pair p and q = p (1 − p) from what is small; fills in the expert of the largest p, and 1 − p there."""
    if activation == "sigmoid":
        p = logits.sigmoid()
        return p, p * (-logits).sigmoid()
    p = logits.softmax(1)
    torch.argmax(p, 1, keepdim=True, out=top)
    rest = p.scatter(1, top, 0).sum(1, keepdim=True)
    others.copy_(rest)
    return p, (p * (1 - p)).scatter_(1, top, p.gather(1, top) * rest)


def bend(
    c: Float[Tensor, "tokens experts"], top: Int[Tensor, "tokens one"] | None, z: Float[Tensor, "tokens experts"]
) -> Float[Tensor, "tokens experts"]:
    """H(p) z = p ∘ z − p (pᵀ z) of a block of tokens, in place; top: of each the expert that z is taken relative to."""
    if top is not None:
        z -= z.gather(1, top)
    z *= c
    return z.addcmul_(c, z.sum(1, keepdim=True), value=-1)
