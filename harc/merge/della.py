"""DELLA: DARE with a probability that grows with an entry's rank in its row (MAGPRUNE), then TIES's sign election.

Deep et al. 2024, https://arxiv.org/abs/2406.11617.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import DellaSettings
from harc.merge.ties import merge_agreeing


@method("della", DellaSettings, reference="https://arxiv.org/abs/2406.11617", random=True)
def della(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    density: float = 0.4,
    epsilon: float = 0.15,
    normalize: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> Float[Tensor, "*shape"]:
    """The base plus the sign-consensus merge of the task vectors, thinned by magnitude."""
    generator = torch.Generator().manual_seed(seed)
    task_vectors = []
    for source in sources:
        task_vector = source - base
        if density < 1:
            kept = keep_probability(task_vector, density, epsilon)
            drawn = torch.rand(kept.shape, generator=generator).to(kept.device)
            task_vector = task_vector * (drawn < kept) / kept
        task_vectors.append(task_vector)
    return base + scale * merge_agreeing(task_vectors, weights, normalize=normalize)


def keep_probability(task_vector: Float[Tensor, "*shape"], density: float, epsilon: float) -> Float[Tensor, "*shape"]:
    """From density − epsilon for the smallest magnitude of a row to density + epsilon for the largest, by rank."""
    rows = task_vector.abs().reshape(-1, task_vector.shape[-1]) if task_vector.dim() > 0 else task_vector.reshape(1, 1)
    if rows.shape[1] == 1:
        return torch.full_like(task_vector, density)
    steps = torch.linspace(density - epsilon, density + epsilon, rows.shape[1], device=rows.device)
    probability = torch.empty_like(rows).scatter_(1, rows.argsort(dim=1, stable=True), steps.expand_as(rows))
    return probability.view_as(task_vector)
