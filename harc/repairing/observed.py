"""What linear maps with the same inputs meet in the merged model and in a source, and their fit to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from harc.models.hidden_states import HiddenStates
from harc.repairing.least_squares import Moments, Step, fit_step, wide
from harc.repairing.maps import Maps, observe
from harc.repairing.settings import Ridge


@dataclass(frozen=True)
class Domain:
    """One domain's text in the merged model and in its source.

    fitted: how many tokens are fitted to; those behind them are held out.
    """

    merged: HiddenStates
    source: HiddenStates
    fitted: int

    def held(self, tokens: Int64[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Which tokens are held out."""
        return tokens >= self.fitted

    def weight(self, tokens: Int64[Tensor, "n"]) -> Float[Tensor, "n"]:
        """1/T of each token, T the domain's tokens fitted to, or held out: every domain counts the same."""
        held = max(1, self.merged.tokens - self.fitted)
        return torch.where(self.held(tokens), 1 / held, 1 / max(1, self.fitted))


@dataclass(frozen=True)
class Observed:
    """A block of one domain's tokens.

    x: the merged model's inputs of the maps; merged, source: what each map makes of its own inputs, by name; weight: of
    the tokens; held: which are held out; lacking: what the maps are to add to the source's outputs, to bring the merged
    model's residual stream nearer to the source's.
    """

    x: Float[Tensor, "tokens inputs"]
    merged: Mapping[str, Float[Tensor, "tokens outputs"]]
    source: Mapping[str, Float[Tensor, "tokens outputs"]]
    weight: Float[Tensor, "tokens"]
    held: Bool[Tensor, "tokens"]
    lacking: Float[Tensor, "tokens hidden"] | None = None


def compare(
    sides: Sequence[tuple[Maps, Callable[[], object]]],
    rows: Callable[[Tensor], Tensor],
    weight: Float[Tensor, "tokens"],
    held: Bool[Tensor, "tokens"],
) -> Observed:
    """Runs the merged model's maps and a source's.

    Args:
        sides: of each the maps, by the same names, and what runs them; the first map is one with the inputs asked for.
        rows: brings an input or output into rows, one a token.
        weight: see Observed.
        held: see Observed.
    """
    merged, source = (observe(maps, run) for maps, run in sides)
    first = next(iter(sides[0][0]))
    device = merged[first][0].device
    return Observed(
        rows(merged[first][0]),
        {name: rows(output) for name, (_, output) in merged.items()},
        {name: rows(output) for name, (_, output) in source.items()},
        weight.to(device),
        held.to(device),
    )


def fit_maps(
    maps: Mapping[str, nn.Linear], observed: Iterable[Observed], dtypes: Mapping[str, torch.dtype], ridge: Ridge
) -> dict[str, Step]:
    """Fits maps with the same inputs and puts the new weights in, rounded to the dtypes they are stored in."""
    first = next(iter(maps.values()))
    outputs = [module.out_features for module in maps.values()]
    fitted, held = (Moments.empty(first.in_features, outputs, first.weight.device) for _ in range(2))
    for block in observed:
        for moments, which in ((fitted, ~block.held), (held, block.held)):
            if which.any():
                _add(moments, block, list(maps), which)
    steps = {}
    for index, (name, module) in enumerate(maps.items()):
        try:
            step = fit_step(fitted, held, index, module.weight.data, dtypes[name], ridge)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if step.weight is not None:
            module.weight.data.copy_(step.weight)
        steps[name] = step
    return steps


def _add(moments: Moments, block: Observed, names: Sequence[str], which: Tensor) -> None:
    targets = [wide(block.source[name][which]) for name in names]
    if block.lacking is not None:
        targets = [target + wide(block.lacking[which]) for target in targets]
    errors = [target - wide(block.merged[name][which]) for name, target in zip(names, targets, strict=True)]
    moments.add(block.x[which], errors, [target.square().sum(1) for target in targets], block.weight[which])
