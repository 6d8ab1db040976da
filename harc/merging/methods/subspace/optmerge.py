"""OptMerge: WUDI with denoised task matrices, as its authors do it for full fine-tuning.

    min over τ_m   Σ_i ‖(τ_m − t_i) d_iᵀ‖² / ‖τ_i‖²,    Adam from τ_m = Σ_i τ_i
    t_i = mean_j τ_j + cut(τ_i − mean_j τ_j),     d_i = cut(τ_i)

cut keeps a matrix's r / N largest of r singular values, N the number of sources. Of d_i = U S Vᵀ only S Vᵀ enters: an
orthogonal U changes no norm. Norms, embeddings and head stay the base's, which the authors exclude. They use another
optimiser (SGD from the mean) for LoRA; that is not here. Their code names the method `wudi2`.

Wei et al. 2025, https://arxiv.org/abs/2505.19892.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.methods.subspace.wudi import Gradient, descend, inverse_squares
from harc.merging.registry import method
from harc.merging.settings import MergeSettings, setting


@dataclass(frozen=True)
class OptmergeSettings(MergeSettings):
    """OptMerge has no weights; steps and their size are the authors'."""

    lr: float = setting(
        1e-5, "Adam's step, an absolute one in the unit of the weights", above=0, tries=(1e-5, 1e-4, 1e-3)
    )
    steps: int = setting(300, "number of Adam's steps", at_least=0)
    scale: float = setting(
        1.0, "factor on the merged task vector; the authors' script for InternVL2.5 has 0.1", tries=(0.3, 1.0)
    )


@method(
    "optmerge", label="OptMerge", settings=OptmergeSettings, reference="https://arxiv.org/abs/2505.19892", kind="batch"
)
def optmerge(
    base: Float[Tensor, "*batch rows columns"],
    sources: Sequence[Float[Tensor, "*batch rows columns"]],
    weights: Sequence[float],
    settings: OptmergeSettings,
) -> Float[Tensor, "*batch rows columns"]:
    """As WUDI, with task matrices cut to their share of the rank; norms, embeddings and head stay the base's."""
    task_vectors = torch.stack([source - base for source in sources])
    gradient = Gradient(*denoised(task_vectors), inverse_squares(task_vectors))
    merged = descend(gradient, task_vectors.sum(dim=0), lr=settings.lr, steps=settings.steps)
    return base + settings.scale * merged


def denoised(
    task_vectors: Float[Tensor, "models *batch rows columns"],
) -> tuple[Float[Tensor, "models *batch rows columns"], Float[Tensor, "models *batch rank columns"]]:
    """The targets t_i and the directions d_i without their left singular vectors."""
    rank = max(1, min(task_vectors.shape[-2:]) // len(task_vectors))
    mean = task_vectors.mean(dim=0)
    targets, directions = [], []
    for task_vector in task_vectors:
        left, value, right = torch.linalg.svd(task_vector - mean, full_matrices=False)
        targets.append(mean + (left[..., :rank] * value[..., None, :rank]) @ right[..., :rank, :])
        _, value, right = torch.linalg.svd(task_vector, full_matrices=False)
        directions.append(value[..., :rank, None] * right[..., :rank, :])
    return torch.stack(targets), torch.stack(directions)
