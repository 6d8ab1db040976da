"""The settings of a router's fit: one definition from the command line to the solver, checked once."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from harc.solver.objectives import objective_names

Hessian = Literal["full", "diagonal", "identity"]
Objective = Literal["quadratic", "kl"]
Solver = Literal["refined", "published"]
PreconditionerName = Literal["auto", "blocks", "shared", "diagonal", "none"]
ALPHAS = (0.5, 0.8, 0.9, 0.95, 0.99)  # what alpha="auto" tries

Settings = TypeVar("Settings", bound="SolveSettings")


@dataclass(frozen=True)
class SolveSettings:
    """How a router is fitted (METHOD sections 3 to 5).

    Raises:
        ValueError: a value out of range, an unknown word, settings that exclude one another.
    """

    alpha: float | Literal["auto"] = 0.9
    """Share of the curvature's off-diagonals that is kept, Λ̃ = α Λ + (1 − α) diag Λ: 0 (diagonal only) to 1 (full).
    "auto": the one of `ALPHAS` with the lowest routing KL on held-out tokens, or the start where none lowers it."""

    beta: float | None = None
    """If given, Λ̃ = Λ + β diag Λ instead; 0 or more."""

    hessian: Hessian = "full"
    """Curvature of the routing distribution: full; diagonal, p (1 − p) alone; identity, least squares on logits."""

    objective: str = "quadratic"
    """The quadratic form; or "kl", Newton steps from its minimum on the exact routing KL; or a registered one
    (harc.solver.objectives), which starts from that minimum too."""

    tol: float = 1e-6
    """‖residual‖ / ‖right-hand side‖ at which the quadratic solve ends; above 0, below 1."""

    max_iter: int = 1000
    """Limit of conjugate-gradient iterations of the quadratic solve."""

    solver: Solver = "refined"
    """refined: preconditioned conjugate gradients, ended by the true residual (harc.solver.solve); published: as the
    authors run them, without a preconditioner, in fp32, ended by the carried residual (harc.solver.published)."""

    preconditioner: PreconditionerName = "auto"
    """See harc.solver.preconditioner; auto: expert blocks where they pay, else the shared factor."""

    def __post_init__(self) -> None:
        """Checks every setting, and how they go together."""
        if self.alpha != "auto" and not (_is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise ValueError(f"alpha={self.alpha}: expected a number from 0 to 1, or auto")
        if self.beta is not None and not (_is_number(self.beta) and 0 <= self.beta < math.inf):
            raise ValueError(f"beta={self.beta}: expected a number, 0 or more, or none at all")
        words = {"hessian": Hessian, "solver": Solver, "preconditioner": PreconditionerName}
        for name, allowed in words.items():
            check_word(name, getattr(self, name), get_args(allowed))
        check_word("objective", self.objective, objective_names())
        if not (_is_number(self.tol) and 0 < self.tol < 1):
            raise ValueError(f"tol={self.tol}: expected a number above 0 and below 1")
        if not (isinstance(self.max_iter, int) and self.max_iter >= 0):
            raise ValueError(f"max_iter={self.max_iter}: expected a whole number, 0 or more")
        if self.alpha == "auto" and self.beta is not None:
            raise ValueError("alpha=auto and beta exclude each other: beta is a variant of its own")
        if self.hessian == "identity" and (self.alpha == "auto" or self.objective != "quadratic"):
            raise ValueError(
                "hessian=identity ignores the routing distribution: alpha=auto and another objective than quadratic, "
                "such as objective=kl, need another"
            )

        if self.solver == "published":
            self._check_published()

    def _check_published(self) -> None:
        asked = {"alpha": "auto", "objective": "kl", "hessian": "identity"}
        wrong = [f"{name}={word}" for name, word in asked.items() if getattr(self, name) == word]
        if self.preconditioner not in ("auto", "none"):
            wrong.append(f"preconditioner={self.preconditioner}")
        if wrong:
            raise ValueError(f"solver=published has no {', '.join(wrong)}: leave it out, or take solver=refined")

    @property
    def alphas(self) -> tuple[float, ...]:
        """The α to solve for, one or several; with β it is ignored."""
        return ALPHAS if self.alpha == "auto" else (self.alpha,)


def with_options(settings: Settings, options: dict[str, Any]) -> Settings:
    """The settings with some of their fields replaced, as keyword arguments of a function name them.

    Raises:
        TypeError: a name that is no field, with those there are.
        ValueError: as the settings' own check.
    """
    known = [field.name for field in dataclasses.fields(settings)]
    for name in options:
        if name not in known:
            raise TypeError(f"unknown setting {name!r}: expected one of {', '.join(known)}")
    return dataclasses.replace(settings, **options)


def check_word(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Holds a setting against the words it may be.

    Raises:
        ValueError: another one.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value}: expected one of {', '.join(allowed)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
