"""WUDI: for each linear layer the task vector that interferes least with every source's own inputs' subspace.

    min over τ_m   Σ_i ‖(τ_m − τ_i) τ_iᵀ‖² / ‖τ_i‖²,    Adam from τ_m = Σ_i τ_i

The gradient is 2 (τ_m A − B), A = Σ_i τ_iᵀ τ_i / ‖τ_i‖², B = Σ_i τ_i τ_iᵀ τ_i / ‖τ_i‖², both computed once: a step
costs one product. Where the layer has fewer rows than half its columns over the models (a router), the product is taken
through the rows instead: τ_m A = (τ_m Rᵀ) R, R the stacked τ_i / ‖τ_i‖.

Cheng et al. 2025, https://arxiv.org/abs/2503.08099.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import MergeSettings, setting

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's usual ones, as published


@dataclass(frozen=True)
class WudiSettings(MergeSettings):
    """WUDI has no weights; the defaults are the paper's."""

    lr: float = setting(
        2e-5, "Adam's step, an absolute one in the unit of the weights", above=0, tries=(2e-5, 2e-4, 1e-3)
    )
    steps: int = setting(300, "number of Adam's steps", at_least=0)


@method("wudi", label="WUDI-Merging", settings=WudiSettings, reference="https://arxiv.org/abs/2503.08099", kind="batch")
def wudi(
    base: Float[Tensor, "*batch rows columns"],
    sources: Sequence[Float[Tensor, "*batch rows columns"]],
    weights: Sequence[float],
    settings: WudiSettings,
) -> Float[Tensor, "*batch rows columns"]:
    """Per linear layer, minimises the interference with every task vector; norms, embeddings and head stay the base's.

    Each linear weight of a batch is a problem of its own.
    """
    task_vectors = torch.stack([source - base for source in sources])
    gradient = Gradient(task_vectors, task_vectors, inverse_squares(task_vectors))
    return base + descend(gradient, task_vectors.sum(dim=0), lr=settings.lr, steps=settings.steps)


def objective(
    merged: Float[Tensor, "*batch rows columns"],
    targets: Float[Tensor, "models *batch rows columns"],
    directions: Float[Tensor, "models *batch directions columns"],
    shares: Float[Tensor, "models *batch 1 1"],
) -> Float[Tensor, "*batch"]:
    """Σ_i c_i ‖(τ_m − t_i) d_iᵀ‖²; WUDI's targets t_i and directions d_i are τ_i, its shares c_i are 1 / ‖τ_i‖²."""
    difference = (merged - targets) @ directions.mT
    return (difference.square().sum(dim=(-2, -1)) * shares[..., 0, 0]).sum(dim=0)


def descend(
    gradient: "Gradient", start: Float[Tensor, "*batch rows columns"], *, lr: float, steps: int
) -> Float[Tensor, "*batch rows columns"]:
    """Adam's steps from `start`, which is changed in place."""
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(start)
        mean.lerp_(slope, 1 - _BETA1)
        square.mul_(_BETA2).addcmul_(slope, slope, value=1 - _BETA2)
        root = (square / (1 - _BETA2**step)).sqrt_().add_(_EPSILON)
        start.addcdiv_(mean, root, value=-lr / (1 - _BETA1**step))
    return start


class Gradient:
    """The gradient of `objective` by τ_m, for fixed targets, directions and shares."""

    def __init__(
        self,
        targets: Float[Tensor, "models *batch rows columns"],
        directions: Float[Tensor, "models *batch directions columns"],
        shares: Float[Tensor, "models *batch 1 1"],
    ) -> None:
        models, *_, rows, columns = directions.shape
        scaled = directions * shares.sqrt()
        stacked = torch.cat(list(scaled), dim=-2)  # R, (*batch, models · directions, columns)
        self.target = 2 * torch.stack([t @ s.mT @ s for t, s in zip(targets, scaled, strict=True)]).sum(dim=0)
        self.factors = [2 * stacked.mT, stacked] if 2 * models * rows < columns else [2 * stacked.mT @ stacked]

    def __call__(self, merged: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
        """2 (τ_m A − B)."""
        product = merged
        for factor in self.factors:
            product = product @ factor
        return product - self.target


def inverse_squares(
    task_vectors: Float[Tensor, "models *batch rows columns"],
) -> Float[Tensor, "models *batch 1 1"]:
    """1 / ‖τ_i‖², zero for a task vector of zeros."""
    squares = task_vectors.square().sum(dim=(-2, -1), keepdim=True)
    return torch.where(squares > 0, 1 / squares, 0)
