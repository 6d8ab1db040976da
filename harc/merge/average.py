"""Weight averaging: θ = Σ w_i θ_i / Σ w_i (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import AverageSettings


@method("average", AverageSettings, reference="https://arxiv.org/abs/2203.05482", uses_base=False)
def average(
    base: Float[Tensor, "*shape"] | None, sources: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """Weighted mean of the sources; the base plays no part."""
    total = sum(weights)
    # As a correction of the first source: equal sources give themselves back, without rounding.
    merged = sources[0].clone()
    for source, weight in zip(sources[1:], weights[1:], strict=True):
        merged.add_(source - sources[0], alpha=weight / total)
    return merged
