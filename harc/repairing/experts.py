"""The linear maps of an MoE block but its router: shared experts on all tokens, routed ones on those routed to them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harc.models.hidden_states import HiddenStates
from harc.repairing.least_squares import wide
from harc.repairing.maps import Expert, call_order, experts_module, first_name, linear_maps, muted
from harc.repairing.observed import Domain, Observed, compare
from harc.repairing.routing import Routing, read_routing

_TRIED = 256  # tokens by which a block's maps are found
_ROWS = 4096  # tokens at once

Inputs = Sequence[tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]]]


class ExpertMaps:
    """The maps of one MoE block that every domain's models have loaded.

    Attributes: shared: maps of all tokens, by path in the block; groups: names of those with the same inputs, in order;
    experts: the merged model's routed experts; count: how many; names: path in the block of their parameters with the
    "first" (gate and up) and "second" (down) maps.
    """

    def __init__(self, layer: int, domains: Sequence[Domain], inputs: Inputs) -> None:
        """Finds them. inputs: of each domain's block, in the merged model and in the source."""
        self.layer, self.domains, self.inputs = layer, domains, inputs
        self._moe = domains[0].merged.stream.moe(layer)
        self.experts = _experts(self._moe)
        self.count = len(self.experts.get_parameter("down_proj"))
        owner = next(name for name, module in self._moe.named_modules() if module is self.experts)
        self.names = {"first": f"{owner}.{first_name(self.experts)}", "second": f"{owner}.down_proj"}
        router = domains[0].merged.stream.routers[layer].module
        self.shared = linear_maps(self._moe, (self.experts, router))
        few = inputs[0][0][:_TRIED].to(domains[0].merged.stream.device)
        self.groups = call_order(self.shared, _running(self._moe, few))
        self._adds = _adds_experts(self._moe, few)
        self._routings: list[Routing] = []

    def observed(self, group: Sequence[str]) -> Iterator[Observed]:
        """What a group of shared maps meets, a block of tokens at a time."""
        for domain, pair in zip(self.domains, self.inputs, strict=True):
            for tokens in torch.arange(domain.merged.tokens).split(_ROWS):
                sides = []
                for state, x in zip((domain.merged, domain.source), pair, strict=True):
                    moe = state.stream.moe(self.layer)
                    maps = linear_maps(moe)
                    part = x[tokens].to(state.stream.device)
                    sides.append(({name: maps[name] for name in group}, _running(moe, part)))
                yield compare(sides, _rows_of(len(tokens)), domain.weight(tokens), domain.held(tokens))

    def pairs(self, index: int) -> list[Expert]:
        """A routed expert of the merged model, then of every domain's source, on views of the parameters."""
        sources = [_experts(domain.source.stream.moe(self.layer)) for domain in self.domains]
        return [Expert(experts, index) for experts in (self.experts, *sources)]

    def observed_by(self, index: int, key: str, pairs: Sequence[Expert], drift: float) -> Iterator[Observed]:
        """What a routed expert's first or second map meets: the tokens that the domain's source routes to it.

        Each is weighted by what the source weights the expert with. drift: see BlockMaps; it is shared out among a
        token's experts, whose weights need not sum to one.
        """
        merged, *sources = pairs
        for domain, source, routing, (x_merged, x_source) in zip(
            self.domains, sources, self._routing(), self.inputs, strict=True
        ):
            device = domain.merged.stream.device
            for tokens, share, total in routing.of(index):
                sides = [
                    ({key: side.linear(key)}, calling(side, x[tokens].to(device)))
                    for side, x in ((merged, x_merged), (source, x_source))
                ]
                met = compare(sides, _rows_of(len(tokens)), domain.weight(tokens) * share, domain.held(tokens))
                if key == "second" and drift and self._adds:
                    lacking = drift * _distance(domain.merged, domain.source, tokens) / total[:, None]
                    met = replace(met, lacking=lacking.to(device))
                yield met

    def _routing(self) -> list[Routing]:
        if not self._routings:
            self._routings = [
                read_routing(domain.source.stream.moe(self.layer), x, domain.source.stream.device)
                for domain, (_, x) in zip(self.domains, self.inputs, strict=True)
            ]
        return self._routings


def _experts(moe: nn.Module) -> nn.Module:
    experts = experts_module(moe)
    assert experts is not None  # the driver has looked
    return experts


def _adds_experts(moe: nn.Module, x: Tensor) -> bool:
    """Whether an MoE block adds what its experts return to the rest of its output, as it is."""
    outputs = []
    for scale in (0.0, 1.0):
        with muted(_experts(moe), scale):
            output = moe(x[None])
            outputs.append((output[0] if isinstance(output, tuple) else output).reshape(x.shape).float())
    difference = (outputs[1] - outputs[0] - x.float()).norm() / x.float().norm()
    return bool(difference < (1e-5 if x.dtype.itemsize >= 4 else 2e-2))


def _running(moe: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        with muted(_experts(moe)):
            moe(x[None])

    return run


def calling(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """What calls a module on an input."""
    return lambda: module(x)


def _rows_of(tokens: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value.reshape(tokens, -1)


def _distance(merged: HiddenStates, source: HiddenStates, tokens: Tensor) -> Tensor:
    return wide(source.values[tokens]) - wide(merged.values[tokens])
