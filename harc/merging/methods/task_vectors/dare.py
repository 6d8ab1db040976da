"""DARE: drop entries of the task vectors at random, rescale the rest, merge by TIES's sign election or a plain sum.

Yu et al. 2024, https://arxiv.org/abs/2311.03099.
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
class DareSettings(ConsensusSettings):
    """The density is the paper's."""

    density: float = setting(
        0.4,
        "probability that an entry of a task vector is kept; it is then divided by it",
        above=0,
        at_most=1,
        tries=(0.2, 0.4, 0.7),
    )
    linear: bool = setting(False, "add the task vectors up instead of electing signs")
    normalize: bool = setting(
        False,
        "divide by the weights of the sources that agree on an entry's sign (linear: by the sum of weights)",
        published=(True,),
    )


@method("dare", label="DARE", settings=DareSettings, reference="https://arxiv.org/abs/2311.03099", random=True)
def dare(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: DareSettings,
    *,
    seed: int,
) -> Float[Tensor, "*shape"]:
    """Drops entries of each task vector at random, rescales the rest, then elects signs and merges as TIES does.

    The same seed drops the same entries.
    """
    generator = torch.Generator().manual_seed(seed)
    task_vectors = [drop_and_rescale(source - base, settings.density, generator) for source in sources]
    if not settings.linear:
        return base + settings.scale * merge_agreeing(task_vectors, weights, normalize=settings.normalize)
    total = sum(weights) if settings.normalize else 1.0
    merged = base.clone()
    for task_vector, weight in zip(task_vectors, weights, strict=True):
        merged.add_(task_vector, alpha=settings.scale * weight / total)
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
