"""The repair of one layer, in the order in which it runs: attention, router, experts; or attention and dense MLP.

Merged model and sources run side by side on the same tokens, each on its own hidden states, a layer of each loaded.
Maps with the same inputs are fitted together, and the merged layer is run again up to the next.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from harc.measures import routing_kl
from harc.models.hidden_states import HiddenStates
from harc.models.routers import Activation, Router
from harc.models.streaming import LayerStream
from harc.repairing.block import BlockMaps
from harc.repairing.experts import ExpertMaps, Inputs
from harc.repairing.least_squares import Step, wide
from harc.repairing.observed import Domain, fit_maps
from harc.repairing.report import MapsRepair, RouterRepair
from harc.repairing.settings import Part, RepairSettings
from harc.solver.fit import fit_router

_ROWS = 4096


class LayerRepair:
    """Repairs one loaded layer.

    Attributes: changed: names of the parameters that are other ones now; maps, router: what came of it.
    """

    def __init__(self, layer: int, domains: Sequence[Domain], settings: RepairSettings) -> None:
        self._layer, self._domains, self._settings = layer, domains, settings
        self._stream: LayerStream = domains[0].merged.stream
        if layer in self._stream.routers:  # the driver has tried each kind of layer, before any was loaded
            self._splits = self._stream.form(layer) is not None
        self.changed: set[str] = set()
        self.maps: list[MapsRepair] = []
        self.router: RouterRepair | None = None

    def run(self) -> None:
        """Repairs the chosen parts and takes all hidden states through the layer."""
        with torch.no_grad():
            self._repair_block()
            router = self._stream.routers.get(self._layer)
            if router is None:
                for domain in self._domains:
                    domain.merged.forward(self._layer)
                    domain.source.forward(self._layer)
                return
            states = [(domain.merged, domain.source) for domain in self._domains]
            inputs = [(self._router_inputs(merged), self._router_inputs(source)) for merged, source in states]
            if "router" in self._settings.parts:
                self._repair_router(router, inputs)
            if "experts" in self._settings.parts:
                self._repair_experts(router, inputs)
            for pair, x in zip(states, inputs, strict=True):
                for state, own in zip(pair, x, strict=True):
                    state.complete(self._layer, own, self._splits)

    def _repair_block(self) -> None:
        parts: dict[bool, Part] = {True: "attention", False: "experts"}
        block = BlockMaps(self._layer, self._domains, lambda attention: parts[attention] in self._settings.parts)
        prefix = f"{self._stream.prefix}{self._layer}."
        for group in block.groups:
            maps = {name: block.maps[name] for name in group}
            names = {name: f"{prefix}{name}.weight" for name in group}
            observed = block.observed(group, self._settings.drift)
            steps = fit_maps(maps, observed, self._dtypes(names), self._settings.ridge)
            for name, step in steps.items():
                self._note(parts[block.in_attention(name)], name, names[name], [step])

    def _repair_router(self, router: Router, inputs: Inputs) -> None:
        """The router, to the logits that the sources compute on their own inputs."""
        device = self._stream.device
        sources = [domain.source.stream.loaded_router(self._layer) for domain in self._domains]
        inputs = [tuple(self._stream.router_features(self._layer, x) for x in pair) for pair in inputs]  # type: ignore[misc]
        logits = [
            torch.cat([wide(part.to(device)) @ wide(source).mT for part in x.split(_ROWS)])
            for (_, x), source in zip(inputs, sources, strict=True)
        ]
        features = [x.to(device) for x, _ in inputs]
        cuts = [domain.fitted for domain in self._domains]
        fitted = [values[:cut] for values, cut in zip(features, cuts, strict=True)]
        targets = [values[:cut] for values, cut in zip(logits, cuts, strict=True)]
        held = [values[cut:] for values, cut in zip(features, cuts, strict=True)]
        held_targets = [values[cut:] for values, cut in zip(logits, cuts, strict=True)]
        some = any(len(x) for x in held)
        names = [name for name in (router.weight_name, router.bias_name) if name]
        before = self._stream.loaded_router(self._layer).to(self._dtypes({names[0]: names[0]})[names[0]])
        solution = fit_router(
            fitted,
            sources,
            targets,
            init=before,
            held_out=held if some else None,
            held_out_targets=held_targets if some else None,
            activation=router.activation,
            settings=self._settings,
        )
        weight = before if solution.kept else solution.weight.to(before)
        judged = (held, held_targets) if some else (fitted, targets)
        kl_before, kl_after = (_mean_kl(*judged, one, router.activation) for one in (before, weight))
        self.router = RouterRepair(
            kl_before, kl_after, solution.alpha, solution.kept, solution.converged, solution.residual
        )
        if not solution.kept:
            self._stream.set_router(self._layer, weight)
            self.changed.update(names)

    def _repair_experts(self, router: Router, inputs: Inputs) -> None:
        """Shared experts, then each routed expert's gate and up and its down map."""
        found = ExpertMaps(self._layer, self._domains, inputs)
        for group in found.groups:
            names = {name: f"{router.moe_name}.{name}.weight" for name in group}
            maps = {name: found.shared[name] for name in group}
            for name, step in fit_maps(maps, found.observed(group), self._dtypes(names), self._settings.ridge).items():
                self._note("experts", name, names[name], [step])
        names = {key: f"{router.moe_name}.{name}" for key, name in found.names.items()}
        dtypes = self._dtypes(names)
        steps: dict[str, list[Step]] = {key: [] for key in names}
        for index in range(found.count):
            pairs = found.pairs(index)
            for key in names:
                observed = found.observed_by(index, key, pairs, self._settings.drift)
                maps = {key: pairs[0].linear(key)}
                steps[key].append(fit_maps(maps, observed, dtypes, self._settings.ridge)[key])
        for key, name in names.items():
            self._note("experts", found.names[key], name, steps[key])

    def _router_inputs(self, state: HiddenStates) -> Float[Tensor, "tokens hidden"]:
        return state.router_inputs(self._layer, self._splits)

    def _dtypes(self, names: dict[str, str]) -> dict[str, torch.dtype]:
        """What parameters are stored in, by the keys of their names."""
        tensors, parameters = self._stream.checkpoint.tensors, self._stream.parameters
        return {key: tensors[parameters.keys(lambda one: one == name)[0]].dtype for key, name in names.items()}  # noqa: B023

    def _note(self, part: Part, name: str, parameter: str, steps: Sequence[Step]) -> None:
        self.maps.append(MapsRepair.of(part, name, steps))
        if any(step.weight is not None for step in steps):
            self.changed.add(parameter)


def _weight(stream: LayerStream, layer: int) -> Tensor:
    """A loaded layer's router."""
    return stream.model.get_parameter(stream.routers[layer].weight_name).data


def _mean_kl(
    features: Sequence[Float[Tensor, "tokens hidden"]],
    targets: Sequence[Float[Tensor, "tokens experts"]],
    weight: Float[Tensor, "experts hidden"],
    activation: Activation,
) -> float:
    """Routing KL (nats) from target logits to those of a router, mean over domains."""
    means = []
    for x, z in zip(features, targets, strict=True):
        total = 0.0
        for part, own in zip(x.split(_ROWS), z.split(_ROWS), strict=True):
            total += float(routing_kl(own, wide(part) @ wide(weight).mT, activation).double().sum())
        means.append(total / max(1, len(x)))
    return sum(means) / len(means)
