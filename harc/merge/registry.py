"""The methods by name: one decorator, `@method(...)`, on the function that merges tensors."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from harc.merge.settings import MergeSettings

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A merging method.

    kind: `tensor` (one tensor at a time), `batch` (same-shaped linear layers of a block together; the rest stays the
    base's), or `data` (a driver of its own that runs the sources on calibration data).
    uses_base: whether the merge is one of task vectors. random: whether the function takes a seed.
    """

    name: str
    function: Callable[..., Any]
    settings: type[MergeSettings]
    reference: str
    kind: str
    uses_base: bool
    random: bool

    def configure(self, given: dict[str, Any]) -> MergeSettings:
        """Makes the settings from what was given.

        Raises:
            ValueError: an unknown setting (the valid ones are named) or a value out of range.
        """
        valid = {field.name: field.default for field in fields(self.settings)}
        unknown = sorted(set(given) - set(valid))
        if unknown:
            listed = ", ".join(f"{n} ({d})" if d is not MISSING and d is not None else n for n, d in valid.items())
            raise ValueError(f"merge method {self.name} has no setting {unknown[0]!r}; it has: {listed or 'none'}")
        try:
            return self.settings(**given)
        except ValueError as error:
            raise ValueError(f"merge method {self.name}: {error}") from None


METHODS: dict[str, Method] = {}


def method(
    name: str,
    settings: type[MergeSettings],
    *,
    reference: str,
    kind: str = "tensor",
    uses_base: bool = True,
    random: bool = False,
) -> Callable[[Function], Function]:
    """Registers a function as the merging method `name`."""

    def register(function: Function) -> Function:
        METHODS[name] = Method(name, function, settings, reference, kind, uses_base, random)
        return function

    return register


def find_method(name: str) -> Method:
    """Looks a method up.

    Raises:
        ValueError: an unknown name; the valid ones are named.
    """
    if name not in METHODS:
        raise ValueError(f"unknown merge method {name!r}; valid are: {', '.join(sorted(METHODS))}")
    return METHODS[name]
