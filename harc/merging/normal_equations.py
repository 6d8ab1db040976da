"""The least-squares problem of RegMean and its kin: W Σ_i w_i G_i = Σ_i w_i W_i G_i, one linear layer at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.grams import GramCollector

RIDGE = 1e-6


def damp(gram: Float[Tensor, "*batch columns columns"], damping: float) -> Float[Tensor, "*batch columns columns"]:
    """The Gram matrix with its off-diagonal entries multiplied by `damping`."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
    damped = gram * damping
    damped.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return damped


def solve_normal_equations(
    gram: Float[Tensor, "columns columns"],
    product: Float[Tensor, "rows columns"],
    mean: Float[Tensor, "rows columns"],
    *,
    ridge: float = RIDGE,
) -> Float[Tensor, "rows columns"]:
    """Solves W gram = product in float64, with a pull of `ridge` (relative to the diagonal) towards the mean.

    Inputs that never fired, and a layer without data, so get the sources' mean.
    """
    gram, product, mean_ = gram.double(), product.double(), mean.double()
    diagonal = gram.diagonal()
    scale = torch.where(diagonal > 1e-12 * diagonal.max(), diagonal, 1.0).sqrt()
    scaled = gram / torch.outer(scale, scale)
    right = product / scale
    while True:
        ridged = scaled + ridge * torch.eye(len(scaled), dtype=torch.float64, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            break
        ridge = max(100 * ridge, 1e-12)  # rounding made a singular matrix indefinite
    # Solved for the correction of the mean, so that equal sources give themselves back.
    residual = right - (mean_ * scale) @ scaled
    correction = torch.cholesky_solve(residual.mT, factor).mT / scale
    return mean + correction.to(mean.dtype)


class NormalEquations:
    """Σ w G and Σ w (W − W₁) G over the sources, so that memory does not grow with their number.

    As differences from the first source's weights: equal sources give themselves back, without rounding.
    """

    def __init__(self, damping: float, divide_by: str) -> None:
        self.damping, self.divide_by, self.weight = damping, divide_by, 0.0
        self.first: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.grams: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}

    def add(self, tensors: dict[str, Tensor], seen: GramCollector, weight: float, tokens: int) -> None:
        """Adds a source: its parameters, what its linear layers received, its weight and number of tokens."""
        self.weight += weight
        for name, tensor in tensors.items():
            if name not in self.means:
                self.first[name] = tensor.float().clone()
                self.means[name] = torch.zeros_like(self.first[name])
            else:
                self.means[name].lerp_(tensor.float() - self.first[name], weight / self.weight)
            if name in seen.grams:
                gram = damp(seen.grams[name], self.damping)
                if self.divide_by == "module":
                    gram.mul_((weight / seen.counts[name].clamp(min=1).to(gram))[..., None, None])
                else:
                    gram.mul_(weight / max(tokens, 1))
                product = _oriented(tensor.float() - self.first[name], gram) @ gram
                self.grams[name] = self.grams[name] + gram if name in self.grams else gram
                self.products[name] = self.products[name] + product if name in self.products else product

    def solve(self) -> dict[str, Tensor]:
        """The merged parameters: the solution where there are Gram matrices, the weighted mean elsewhere."""
        moved = dict(self.means)
        for name, gram in self.grams.items():
            mean = _oriented(self.means[name], gram)
            each = zip(*(t.reshape(-1, *t.shape[-2:]) for t in (gram, self.products[name], mean)), strict=True)
            solved = torch.stack([solve_normal_equations(*matrices) for matrices in each]).view_as(mean)
            moved[name] = _oriented(solved, self.means[name])
        return {name: self.first[name] + change for name, change in moved.items()}


def _oriented(weight: Tensor, like: Tensor) -> Tensor:
    """The weight, transposed if its last dimension is not that of `like`: some models store inputs × outputs."""
    return weight if weight.shape[-1] == like.shape[-1] else weight.mT
