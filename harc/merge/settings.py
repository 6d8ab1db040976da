"""Every merging method's settings, with the published values (METHOD section 6) as defaults; they stand only here."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class MergeSettings:
    """What all methods share: a check of the values, and weights a source for the methods that have them."""

    published_weights: ClassVar[tuple[float, ...]] = ()

    def resolved_weights(self, sources: int) -> list[float]:
        """Weights in the order of the sources: those given, else the published ones if they fit, else 1 / sources.

        Raises:
            ValueError: another number of weights than of sources.
        """
        given = getattr(self, "weights", None)
        if given is not None:
            if len(given) != sources:
                raise ValueError(f"weights: {len(given)} values for {sources} sources")
            if not sum(given) > 0:
                raise ValueError(f"weights: {list(given)} do not sum to a positive value")
            return [float(weight) for weight in given]
        if len(self.published_weights) == sources:
            return list(self.published_weights)
        return [1 / sources] * sources

    def _need(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"{name} is {getattr(self, name)}, expected {expected}")


@dataclass
class AverageSettings(MergeSettings):
    """Weighted mean of the sources. weights: one a source (equal)."""

    weights: list[float] | None = None


@dataclass
class TaskArithmeticSettings(MergeSettings):
    """base + scale · Σ w_i τ_i. weights: one a source (1 each); scale: 0.3 to 0.5 without a validation set."""

    weights: list[float] | None = None
    scale: float = 0.4

    def resolved_weights(self, sources: int) -> list[float]:
        """Weights in the order of the sources, 1 each unless given."""
        return [1.0] * sources if self.weights is None else super().resolved_weights(sources)


@dataclass
class TiesSettings(MergeSettings):
    """TIES.

    density: share of each task vector's entries that is kept, the largest. weights: one a source (0.6, 0.4 for two: the
    paper's math and code). normalize: divide by the weights of the sources that agree on an entry's sign. scale: factor
    on the merged task vector.
    """

    published_weights: ClassVar[tuple[float, ...]] = (0.6, 0.4)
    weights: list[float] | None = None
    density: float = 0.2
    normalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._need("density", 0 < self.density <= 1, "above 0 and at most 1")


@dataclass
class DareSettings(MergeSettings):
    """DARE.

    density: probability that an entry of a task vector is kept; it is then divided by it. weights: one a source (0.6,
    0.4 for two). linear: add the task vectors up instead of electing signs as TIES does. normalize, scale: as for TIES.
    """

    published_weights: ClassVar[tuple[float, ...]] = (0.6, 0.4)
    weights: list[float] | None = None
    density: float = 0.4
    linear: bool = False
    normalize: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._need("density", 0 < self.density <= 1, "above 0 and at most 1")


@dataclass
class DellaSettings(MergeSettings):
    """DELLA.

    density: mean probability that an entry is kept; epsilon: a row's smallest entry is kept with density − epsilon, its
    largest with density + epsilon. The rest as for TIES.
    """

    published_weights: ClassVar[tuple[float, ...]] = (0.6, 0.4)
    weights: list[float] | None = None
    density: float = 0.4
    epsilon: float = 0.15
    normalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._need("density", 0 < self.density <= 1, "above 0 and at most 1")
        inside = self.epsilon >= 0 and (self.density == 1 or 0 < self.density - self.epsilon <= 1 - 2 * self.epsilon)
        self._need("epsilon", inside, "0 or more, with density ± epsilon between 0 and 1")


@dataclass
class SceSettings(MergeSettings):
    """SCE. density: share of a tensor's entries that is merged, those that vary most between the task vectors."""

    density: float = 0.1

    def __post_init__(self) -> None:
        self._need("density", 0 < self.density <= 1, "above 0 and at most 1")


@dataclass
class WudiSettings(MergeSettings):
    """WUDI. lr: Adam's step, in the weights' own unit; steps: how many."""

    lr: float = 2e-5
    steps: int = 300

    def __post_init__(self) -> None:
        self._need("lr", self.lr > 0, "a positive number")
        self._need("steps", self.steps >= 0, "0 or more")


@dataclass
class FisherSettings(MergeSettings):
    """Fisher merging.

    weights: one a source (equal). labels: `empirical` differentiates the log-likelihood of the data's own response
    tokens, `sampled` that of tokens drawn from the model at each position (the Fisher proper). normalize: give every
    source's Fisher the same norm over the whole model, so that a source whose loss is steeper does not outvote the
    rest. floor: added to every entry, relative to its tensor's mean. activation_gb: memory for hidden states.
    """

    weights: list[float] | None = None
    labels: str = "empirical"
    normalize: bool = True
    floor: float = 1e-6
    activation_gb: float = 2.0

    def __post_init__(self) -> None:
        self._need("labels", self.labels in ("empirical", "sampled"), "`empirical` or `sampled`")
        self._need("floor", self.floor >= 0, "0 or more")
        self._need("activation_gb", self.activation_gb > 0, "a positive number")


@dataclass
class RegmeanSettings(MergeSettings):
    """RegMean. weights: one a source (equal); damping: factor on the Gram matrices' off-diagonals."""

    weights: list[float] | None = None
    damping: float = 0.9
    tokens_per_batch: int = 8192

    def __post_init__(self) -> None:
        self._need("damping", 0 <= self.damping <= 1, "0 to 1")
        self._need("tokens_per_batch", self.tokens_per_batch > 0, "a positive number")
