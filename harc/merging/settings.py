"""How a merging method declares its settings: one field at a time, with its meaning, range, and values to try.

    @dataclass(frozen=True)
    class TiesSettings(WeightedSettings):
        density: float = setting(0.2, "share of each task vector's entries that is kept", above=0, at_most=1)

Checks, command-line options, help, the table in docs/merge.md and the tuning grid are made from these declarations.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
_KEY = "setting"


@dataclass(frozen=True)
class Declared:
    """What is declared of a setting.

    Attributes:
        meaning: one line, with the unit.
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        at_most: inclusive upper bound.
        one_of: the only values allowed; empty for any.
        published: a tuple of the value that the paper's authors run with where it is not the default, else empty.
        tries: what `+experiment=grid` tries.
    """

    meaning: str = ""
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] = ()
    published: tuple[Any, ...] = ()
    tries: tuple[Any, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether a value is within the declared range."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (not self.one_of or value in self.one_of)
        )

    @property
    def expected(self) -> str:
        """The declared range in words; empty where anything goes."""
        if self.one_of:
            return " or ".join(f"`{value}`" for value in self.one_of)
        bounds = {"above": self.above, "at least": self.at_least, "at most": self.at_most}
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)


def setting(
    default: T,
    meaning: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] = (),
    published: tuple[T, ...] = (),
    tries: tuple[T, ...] = (),
) -> T:
    """Declares a field of a settings dataclass; `Declared` explains the arguments."""
    declared = Declared(meaning, above, at_least, at_most, one_of, published, tries)
    made: Any = field(default=default, metadata={_KEY: declared})
    return made


def declared(one: "Field[Any]") -> Declared:
    """What is declared of a field of a settings dataclass."""
    return one.metadata.get(_KEY, Declared())


@dataclass(frozen=True)
class MergeSettings:
    """The settings of a method that has none; the base of all others."""

    def __post_init__(self) -> None:
        """Refuses a value out of its declared range."""
        for one in fields(self):
            self._need(one.name, declared(one).allows(getattr(self, one.name)), declared(one).expected)

    def resolved_weights(self, sources: int) -> list[float]:
        """The weights in the order of the sources: equal, with sum 1."""
        return [1 / sources] * sources

    def _need(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"{name} is {getattr(self, name)}, expected {expected}")


@dataclass(frozen=True)
class WeightedSettings(MergeSettings):
    """The settings of a method that weighs its sources.

    published_weights: the paper's, by domain; they are the default for as many sources, in this order.
    """

    published_weights: ClassVar[dict[str, float]] = {}

    weights: list[float] | None = setting(None, "one weight per source; equal by default")

    def resolved_weights(self, sources: int) -> list[float]:
        """The weights in the order of the sources: those given, else the published ones if they fit, else 1 / sources.

        Raises:
            ValueError: another number of weights than of sources, or a sum that is not positive.
        """
        if self.weights is not None:
            if len(self.weights) != sources:
                raise ValueError(f"weights: {len(self.weights)} values for {sources} sources")
            if not sum(self.weights) > 0:
                raise ValueError(f"weights: {list(self.weights)} do not sum to a positive value")
            return [float(weight) for weight in self.weights]
        if len(self.published_weights) == sources:
            return list(self.published_weights.values())
        return super().resolved_weights(sources)
