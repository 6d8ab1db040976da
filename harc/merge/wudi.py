"""WUDI: for each linear layer the task vector that interferes least with every source's own inputs' subspace.

    min over τ_m   Σ_i ‖(τ_m − τ_i) τ_iᵀ‖² / ‖τ_i‖²,    Adam from τ_m = Σ_i τ_i

The gradient is 2 (τ_m A − B), A = Σ_i τ_iᵀ τ_i / ‖τ_i‖², B = Σ_i τ_i τ_iᵀ τ_i / ‖τ_i‖², both computed once: a step
costs one product. Where the layer has fewer rows than half its columns over the models (a router), the product is taken
through the rows instead: τ_m A = (τ_m Rᵀ) R, R the stacked τ_i / ‖τ_i‖.

Cheng et al. 2025, https://arxiv.org/abs/2503.08099.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import WudiSettings

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's usual ones, as published


@method("wudi", WudiSettings, reference="https://arxiv.org/abs/2503.08099", kind="batch")
def wudi(
    base: Float[Tensor, "*batch rows columns"],
    sources: Sequence[Float[Tensor, "*batch rows columns"]],
    weights: Sequence[float] = (),
    *,
    lr: float = 2e-5,
    steps: int = 300,
) -> Float[Tensor, "*batch rows columns"]:
    """The base plus the optimised task vector, for one linear weight or a batch of them (each its own problem).

    `weights` play no part: WUDI has none.
    """
    task_vectors = torch.stack([source - base for source in sources])
    gradient = Gradient(task_vectors)
    merged = task_vectors.sum(dim=0)
    mean, square = torch.zeros_like(merged), torch.zeros_like(merged)
    for step in range(1, steps + 1):
        slope = gradient(merged)
        mean.lerp_(slope, 1 - _BETA1)
        square.mul_(_BETA2).addcmul_(slope, slope, value=1 - _BETA2)
        root = (square / (1 - _BETA2**step)).sqrt_().add_(_EPSILON)
        merged.addcdiv_(mean, root, value=-lr / (1 - _BETA1**step))
    return base + merged


def objective(
    merged: Float[Tensor, "*batch rows columns"], task_vectors: Float[Tensor, "models *batch rows columns"]
) -> Float[Tensor, "*batch"]:
    """Σ_i ‖(τ_m − τ_i) τ_iᵀ‖² / ‖τ_i‖²; a task vector of zeros adds nothing."""
    difference = (merged - task_vectors) @ task_vectors.mT
    return (difference.square().sum(dim=(-2, -1)) * _inverse_squares(task_vectors)[..., 0, 0]).sum(dim=0)


class Gradient:
    """The gradient of `objective` by τ_m, for fixed task vectors."""

    def __init__(self, task_vectors: Float[Tensor, "models *batch rows columns"]) -> None:
        models, *_, rows, columns = task_vectors.shape
        scaled = task_vectors * _inverse_squares(task_vectors).sqrt()
        stacked = torch.cat(list(scaled), dim=-2)  # R, (*batch, models · rows, columns)
        self.target = 2 * torch.stack([t @ s.mT @ s for t, s in zip(task_vectors, scaled, strict=True)]).sum(dim=0)
        self.factors = [2 * stacked.mT, stacked] if 2 * models * rows < columns else [2 * stacked.mT @ stacked]

    def __call__(self, merged: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
        """2 (τ_m A − B)."""
        product = merged
        for factor in self.factors:
            product = product @ factor
        return product - self.target


def _inverse_squares(task_vectors: Tensor) -> Tensor:
    """1 / ‖τ_i‖², zero for a task vector of zeros, shaped (models, *batch, 1, 1)."""
    squares = task_vectors.square().sum(dim=(-2, -1), keepdim=True)
    return torch.where(squares > 0, 1 / squares, 0)
