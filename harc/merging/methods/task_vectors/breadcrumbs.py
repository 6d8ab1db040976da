"""Model Breadcrumbs: task arithmetic without each task vector's smallest entries and without its largest.

    θ = θ_base + λ Σ_i w_i m_i ⊙ τ_i,    m_i keeps a tensor's entries whose rank by magnitude is between the two tails

Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from harc.merging.methods.task_vectors.task_arithmetic import TaskArithmeticSettings
from harc.merging.methods.task_vectors.ties import keep_largest
from harc.merging.registry import method
from harc.merging.settings import setting


@dataclass(frozen=True)
class BreadcrumbsSettings(TaskArithmeticSettings):
    """Tails as mergekit recommends; the scale is task arithmetic's, which the paper validates as well."""

    density: float = setting(
        0.9,
        "share of each task vector's entries that is kept; 0.9 is mergekit's recommendation",
        above=0,
        at_most=1,
        tries=(0.1, 0.5, 0.9),
    )
    outliers: float = setting(
        0.01,
        "share of the entries, the largest, that is dropped; fewer where density leaves fewer (mergekit's gamma)",
        at_least=0,
        at_most=1,
    )


@method(
    "breadcrumbs",
    label="Model Breadcrumbs",
    settings=BreadcrumbsSettings,
    reference="https://arxiv.org/abs/2312.06795",
)
def breadcrumbs(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: BreadcrumbsSettings,
) -> Float[Tensor, "*shape"]:
    """Drops the smallest and the very largest entries of each task vector, then adds the vectors up, scaled."""
    merged = base.clone()
    for source, weight in zip(sources, weights, strict=True):
        kept = without_tails(source - base, settings.density, settings.outliers)
        merged.add_(kept, alpha=settings.scale * weight)
    return merged


def without_tails(task_vector: Float[Tensor, "*shape"], density: float, outliers: float) -> Float[Tensor, "*shape"]:
    """Zeroes the `outliers` share of the largest entries, and the smallest, so that the `density` share is left."""
    if density >= 1:
        return task_vector
    size = task_vector.numel()
    kept = int(density * size)
    dropped = min(int(outliers * size), size - kept)
    return keep_largest(task_vector, dropped + kept) - keep_largest(task_vector, dropped)
