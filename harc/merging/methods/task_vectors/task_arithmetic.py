"""Task arithmetic: θ = θ_base + λ Σ w_i τ_i, τ_i = θ_i − θ_base (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import WeightedSettings, setting


@dataclass(frozen=True)
class TaskArithmeticSettings(WeightedSettings):
    """Not among the paper's methods, so that the default is the method's authors' advice."""

    weights: list[float] | None = setting(None, "one weight per source; 1 each by default")
    scale: float = setting(
        0.4,
        "λ, factor on the sum of task vectors; Ilharco et al. recommend 0.3 to 0.5 where nothing is validated",
        tries=(0.3, 0.4, 0.5, 1.0),
    )

    def resolved_weights(self, sources: int) -> list[float]:
        """The weights in the order of the sources, 1 each unless given."""
        return [1.0] * sources if self.weights is None else super().resolved_weights(sources)


@method(
    "task_arithmetic",
    label="Task Arithmetic",
    settings=TaskArithmeticSettings,
    reference="https://arxiv.org/abs/2212.04089",
)
def task_arithmetic(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: TaskArithmeticSettings,
) -> Float[Tensor, "*shape"]:
    """The base plus the scaled, weighted sum of the task vectors."""
    merged = base.clone()
    for source, weight in zip(sources, weights, strict=True):
        merged.add_(source - base, alpha=settings.scale * weight)
    return merged
