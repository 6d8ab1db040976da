"""Weight averaging: θ = Σ w_i θ_i / Σ w_i (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import WeightedSettings


@dataclass(frozen=True)
class AverageSettings(WeightedSettings):
    """Weights alone, equal by default."""


@method(
    "average",
    label="Weight Averaging",
    settings=AverageSettings,
    reference="https://arxiv.org/abs/2203.05482",
    uses_base=False,
)
def average(
    base: None,
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: AverageSettings,
) -> Float[Tensor, "*shape"]:
    """The weighted mean of the sources."""
    return weighted_mean(sources, weights)


def weighted_mean(sources: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float]) -> Float[Tensor, "*shape"]:
    """Σ w_i θ_i / Σ w_i."""
    total = sum(weights)
    # As a correction of the first source: equal sources give themselves back, without rounding.
    merged = sources[0].clone()
    for source, weight in zip(sources[1:], weights[1:], strict=True):
        merged.add_(source - sources[0], alpha=weight / total)
    return merged
