"""Task arithmetic: θ = θ_base + λ Σ w_i τ_i, τ_i = θ_i − θ_base (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import TaskArithmeticSettings


@method("task_arithmetic", TaskArithmeticSettings, reference="https://arxiv.org/abs/2212.04089")
def task_arithmetic(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    scale: float = 0.4,
) -> Float[Tensor, "*shape"]:
    """The base plus the scaled, weighted sum of the task vectors."""
    merged = base.clone()
    for source, weight in zip(sources, weights, strict=True):
        merged.add_(source - base, alpha=scale * weight)
    return merged
