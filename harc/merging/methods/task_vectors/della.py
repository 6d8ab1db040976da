"""DELLA: DARE with a probability that grows with an entry's rank in its row (MAGPRUNE), then TIES's sign election.

Deep et al. 2024, https://arxiv.org/abs/2406.11617.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.methods.task_vectors.ties import ConsensusSettings, merge_agreeing
from harc.merging.registry import method
from harc.merging.settings import setting


@dataclass(frozen=True)
class DellaSettings(ConsensusSettings):
    """The paper names DELLA without its settings: the density is DARE's there."""

    density: float = setting(0.4, "mean probability that an entry is kept", above=0, at_most=1, tries=(0.2, 0.4, 0.7))
    epsilon: float = setting(
        0.15, "a row's smallest entry is kept with probability density − ε, its largest with density + ε", at_least=0
    )
    normalize: bool = setting(True, "divide by the weights of the sources that agree on an entry's sign")

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = self.density == 1 or 0 < self.density - self.epsilon <= 1 - 2 * self.epsilon
        self._need("epsilon", inside, "at least 0, with density ± epsilon between 0 and 1")


@method("della", label="DELLA", settings=DellaSettings, reference="https://arxiv.org/abs/2406.11617", random=True)
def della(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: DellaSettings,
    *,
    seed: int,
) -> Float[Tensor, "*shape"]:
    """As DARE, with larger entries likelier to be kept."""
    generator = torch.Generator().manual_seed(seed)
    task_vectors = []
    for source in sources:
        task_vector = source - base
        if settings.density < 1:
            kept = keep_probability(task_vector, settings.density, settings.epsilon)
            drawn = torch.rand(kept.shape, generator=generator).to(kept.device)
            task_vector = task_vector * (drawn < kept) / kept
        task_vectors.append(task_vector)
    return base + settings.scale * merge_agreeing(task_vectors, weights, normalize=settings.normalize)


def keep_probability(task_vector: Float[Tensor, "*shape"], density: float, epsilon: float) -> Float[Tensor, "*shape"]:
    """From density − epsilon for the smallest magnitude of a row to density + epsilon for the largest, by rank."""
    rows = task_vector.abs().reshape(-1, task_vector.shape[-1]) if task_vector.dim() > 0 else task_vector.reshape(1, 1)
    if rows.shape[1] == 1:
        return torch.full_like(task_vector, density)
    steps = torch.linspace(density - epsilon, density + epsilon, rows.shape[1], device=rows.device)
    probability = torch.empty_like(rows).scatter_(1, rows.argsort(dim=1, stable=True), steps.expand_as(rows))
    return probability.view_as(task_vector)
