"""DARE: drop entries of the task vectors at random, rescale the rest, merge by TIES's sign election or a plain sum.

Yu et al. 2024, https://arxiv.org/abs/2311.03099.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import DareSettings
from harc.merge.ties import merge_agreeing


@method("dare", DareSettings, reference="https://arxiv.org/abs/2311.03099", random=True)
def dare(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    density: float = 0.4,
    linear: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
    seed: int = 0,
) -> Float[Tensor, "*shape"]:
    """The base plus the merge of the thinned task vectors. The same seed drops the same entries."""
    generator = torch.Generator().manual_seed(seed)
    task_vectors = [drop_and_rescale(source - base, density, generator) for source in sources]
    if not linear:
        return base + scale * merge_agreeing(task_vectors, weights, normalize=normalize)
    total = sum(weights) if normalize else 1.0
    merged = base.clone()
    for task_vector, weight in zip(task_vectors, weights, strict=True):
        merged.add_(task_vector, alpha=scale * weight / total)
    return merged


def drop_and_rescale(
    task_vector: Float[Tensor, "*shape"], density: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Keeps an entry with probability `density` and divides it by that, so that the expectation stays."""
    if density >= 1:
        return task_vector
    # Drawn on the CPU whatever the device, so that a seed means the same everywhere.
    drawn = torch.rand(task_vector.shape, generator=generator).to(task_vector.device)
    return task_vector.div(density).mul_(drawn < density)
