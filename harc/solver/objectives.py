"""Objectives of one's own: a function under `@objective("NAME")` goes on from the quadratic solution.

A plugin module registers it when it is imported; `objective=NAME` is then a setting of a fit and of `calibrate`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the settings read the names here, and a command line that shows help need not wait for torch
    from jaxtyping import Float
    from torch import Tensor

    from harc.models.routers import Activation

OWN = ("quadratic", "kl")


@dataclass(frozen=True)
class RouterProblem:
    """What a router is fitted to.

    features: router inputs of each domain.
    routers: one source router per domain.
    targets: target logits of each domain; None: the source routers' on the features.
    activation: what turns router logits into probabilities.
    """

    features: "Sequence[Float[Tensor, 'tokens hidden']]"
    routers: "Sequence[Float[Tensor, 'experts hidden']]"
    targets: "Sequence[Float[Tensor, 'tokens experts']] | None"
    activation: "Activation"

    def domains(self) -> "Iterator[tuple[Float[Tensor, 'tokens hidden'], Float[Tensor, 'tokens experts']]]":
        """One domain after the other, in float64: its router inputs, and the target logits on them."""
        for index, (features, router) in enumerate(zip(self.features, self.routers, strict=True)):
            x = features.double()
            yield x, x @ router.to(x).T if self.targets is None else self.targets[index].to(x)


Refine = Callable[[RouterProblem, "Tensor"], "Tensor"]
_OBJECTIVES: dict[str, Refine] = {}


def objective(name: str) -> Callable[[Refine], Refine]:
    """Registers function(problem, start) -> weight, both weights in float64; start is the quadratic solution.

    Raises:
        ValueError: a name that another objective has.
    """

    def register(function: Refine) -> Refine:
        there = _OBJECTIVES.get(name)
        if name in OWN or (there is not None and there.__module__ != function.__module__):
            raise ValueError(f"objective {name!r} of {function.__module__} is already there: rename it")
        _OBJECTIVES[name] = function
        return function

    return register


def objective_names() -> tuple[str, ...]:
    """HARC's own objectives, and those that imported modules registered."""
    return (*OWN, *sorted(_OBJECTIVES))


def find_objective(name: str) -> Refine | None:
    """The registered function; None for HARC's own."""
    return _OBJECTIVES.get(name)


def refined(name: str, problem: RouterProblem, start: "Tensor", fixed: int = 0) -> "Tensor":
    """The weight that a registered objective makes of the quadratic solution, in float64.

    Raises:
        ValueError: it gave another shape, NaN or Inf, or changed one of the `fixed` last columns.
    """
    weight = _OBJECTIVES[name](problem, start)
    if weight.shape != start.shape or not weight.isfinite().all():
        raise ValueError(
            f"objective {name}: expected finite values of shape {tuple(start.shape)}, found {tuple(weight.shape)}"
        )
    weight, free = weight.detach().double(), start.shape[1] - fixed
    if not weight[:, free:].equal(start[:, free:].double()):
        raise ValueError(f"objective {name}: changed the bias, which bias=keep holds fixed; take bias=solve")
    return weight
