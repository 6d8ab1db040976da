"""Weighted least squares with a ridge, from sums over tokens: the step D of linear maps with the same inputs.

    D = C (G + λ diag G)⁻¹,     G = Σ s x xᵀ,     C = Σ s e xᵀ,     e = y_s − W_0 x

The error e is summed, never y_s: maps that need no repair give exact zeros. Sums of the tokens held out tell every λ's
error there, Σ s ‖e − D x‖² = Σ s ‖e‖² − 2 ⟨D, C⟩ + ⟨D G, D⟩, without a second pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.normal_equations import solve_normal_equations
from harc.repairing.settings import RIDGES, Ridge

_ROWS = 4096  # of a float32 product, before it is added up in float64


@dataclass
class Moments:
    """Sums over tokens for maps with the same inputs.

    gram: G; cross: C of each map; error, energy: Σ s ‖e‖² and Σ s ‖y_s‖² of each map; tokens: how many were added.
    """

    gram: Float[Tensor, "inputs inputs"]
    cross: list[Float[Tensor, "outputs inputs"]]
    error: list[float]
    energy: list[float]
    tokens: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: Sequence[int], device: torch.device) -> "Moments":
        """Sums of no tokens."""
        gram, *cross = (torch.zeros(rows, inputs, dtype=torch.float64, device=device) for rows in (inputs, *outputs))
        return cls(gram, cross, [0.0] * len(cross), [0.0] * len(cross))

    def add(
        self,
        x: Float[Tensor, "tokens inputs"],
        errors: Sequence[Float[Tensor, "tokens outputs"]],
        energies: Sequence[Float[Tensor, "tokens"]],
        weight: Float[Tensor, "tokens"],
    ) -> None:
        """Adds tokens: inputs, each map's errors e and ‖y_s‖², and the tokens' weights s."""
        for rows in torch.arange(len(x), device=x.device).split(_ROWS):
            one = wide(x[rows])
            s = weight[rows].to(one.dtype)
            weighted = one * s[:, None]
            self.gram += one.mT @ weighted
            for index, error in enumerate(errors):
                e = wide(error[rows])
                self.cross[index] += e.mT @ weighted
                self.error[index] += float((e.square().sum(1).double() * s).sum())
                self.energy[index] += float((energies[index][rows].double() * s).sum())
        self.tokens += len(x)

    def error_after(self, index: int, step: Float[Tensor, "outputs inputs"]) -> float:
        """Σ s ‖e − D x‖² of a map."""
        quadratic = (step @ self.gram).flatten() @ step.flatten()
        return self.error[index] - 2 * float(self.cross[index].flatten() @ step.flatten()) + float(quadratic)


@dataclass(frozen=True)
class Step:
    """What a map's repair came to.

    weight: the new weight, in the dtype it is stored in; None: the map stays as it is. ridge: the λ taken.
    error_before, error_after, energy: Σ s ‖y_s − W x‖² with the old and the new weight and Σ s ‖y_s‖², on the tokens
    held out, or where none are on those fitted to. held_out: the error of each λ tried.
    """

    weight: Tensor | None
    ridge: float | None
    error_before: float
    error_after: float
    energy: float
    held_out: dict[float, float] = field(default_factory=dict)


def wide(x: Tensor) -> Tensor:
    """A tensor in float32, or wider where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fit_step(
    fitted: Moments,
    held: Moments,
    index: int,
    weight: Float[Tensor, "outputs inputs"],
    dtype: torch.dtype,
    ridge: Ridge,
) -> Step:
    """Fits one map of a group, with a given λ or the best of `RIDGES` on the tokens held out.

    Args:
        fitted: sums of the tokens to fit to.
        held: sums of the tokens held out; with ridge="auto", no λ better there than the weight as it is leaves it so.
        index: of the map in the group.
        weight: W_0.
        dtype: what the weight is stored in; errors are of the weight rounded to it.
        ridge: λ, or "auto".

    Raises:
        ValueError: sums that are not finite.
    """
    judge = held if held.tokens else fitted
    before, energy = judge.error[index], judge.energy[index]
    if not (torch.isfinite(fitted.gram).all() and torch.isfinite(fitted.cross[index]).all()):
        raise ValueError("NaN or Inf in what the models compute")
    if not fitted.tokens or not fitted.cross[index].any() or (ridge == "auto" and not held.tokens):
        return Step(None, None, before, before, energy)
    old = weight.double()
    best: Step | None = None
    tried = {}
    for value in RIDGES if ridge == "auto" else (float(ridge),):
        step = solve_normal_equations(fitted.gram, fitted.cross[index], torch.zeros_like(old), ridge=value)
        new = (old + step).to(dtype)
        after = judge.error_after(index, new.double() - old)
        tried[value] = after
        if best is None or after < best.error_after:
            best = Step(new, value, before, after, energy)
    assert best is not None
    if ridge == "auto" and not best.error_after < before:
        return Step(None, None, before, before, energy, tried)
    return Step(best.weight, best.ridge, before, best.error_after, energy, tried)
