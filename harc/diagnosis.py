"""How far a merged model is from its sources, by domain, on text not used for calibration.

Routing, layer by layer, on two kinds of router inputs: each model's own (the router's error and the drift of the hidden
states), and the merged model's for both routers (its error alone: the paper's z_m against z_i on the same x).
Predictions: the loss, and the KL of the next-token distribution from the source's. Merged model and source run on the
same text, each through its own layers, both a layer at a time; no more than one layer's logits are held.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harc.calibration.checks import batch_tokens, states_budget
from harc.checkpoint import Checkpoint, check_family, open_checkpoint
from harc.likelihood import likelihood, predicted
from harc.measures import differ, logit_shift, overlap, routing_kl
from harc.models.hidden_states import HiddenStates
from harc.models.probe import run_router
from harc.models.routers import Activation, Router
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_EDGES = [round(0.02 * step, 2) for step in range(51)]  # of the histogram of logit shifts; the last bin takes the rest
_BLOCK = 8192  # tokens a router decides on at once

PerLayer = dict[int, list[float]]
PerDomain = dict[int, float]


@dataclass(frozen=True)
class RoutingReport:
    """Distances of a model from its sources by domain (its index).

    Routing on each model's own inputs; with `_same` in the name, of both routers on the model's inputs.

    layers: decoder layer of each value in kl, mismatch, shift, overlap.
    kl: mean routing KL(source ‖ model) of each layer, nats.
    mismatch: share of decisions whose experts differ at all.
    shift: mean relative logit shift ‖z_model − z_source‖ / ‖z_source‖.
    overlap: mean share of the source's experts that the model chooses too.
    shift_quantiles: {quantile: shift} over all tokens and layers.
    shift_below: {0.1: share of tokens and layers with a shift below, 0.2: …}.
    shift_histogram: {"edges", "shares"}.
    any_mismatch: share of tokens with at least one mismatched decision.
    mismatches_per_token: mismatched decisions of a token over all layers.
    tokens: of each domain.

    Predictions, over each sequence's response tokens, over all but the first where it has no response:

    response_tokens: predicted tokens of each sequence.
    loss: mean −log p(token) under the model, nats a token.
    source_loss: the same under the source; loss − source_loss is what merging costs.
    output_kl: mean KL(source ‖ model) of the next-token distributions, nats a token.
    loss_by_sequence, source_loss_by_sequence, output_kl_by_sequence: means of each sequence; 0 for one of one token.
    """

    layers: list[int]
    kl: PerLayer = field(default_factory=dict)
    mismatch: PerLayer = field(default_factory=dict)
    shift: PerLayer = field(default_factory=dict)
    overlap: PerLayer = field(default_factory=dict)
    shift_quantiles: dict[int, dict[float, float]] = field(default_factory=dict)
    shift_below: dict[int, dict[float, float]] = field(default_factory=dict)
    shift_histogram: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    any_mismatch: PerDomain = field(default_factory=dict)
    mismatches_per_token: PerDomain = field(default_factory=dict)
    kl_same: PerLayer = field(default_factory=dict)
    mismatch_same: PerLayer = field(default_factory=dict)
    shift_same: PerLayer = field(default_factory=dict)
    overlap_same: PerLayer = field(default_factory=dict)
    shift_quantiles_same: dict[int, dict[float, float]] = field(default_factory=dict)
    shift_below_same: dict[int, dict[float, float]] = field(default_factory=dict)
    shift_histogram_same: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    any_mismatch_same: PerDomain = field(default_factory=dict)
    mismatches_per_token_same: PerDomain = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    response_tokens: dict[int, list[int]] = field(default_factory=dict)
    loss: PerDomain = field(default_factory=dict)
    source_loss: PerDomain = field(default_factory=dict)
    output_kl: PerDomain = field(default_factory=dict)
    loss_by_sequence: PerLayer = field(default_factory=dict)
    source_loss_by_sequence: PerLayer = field(default_factory=dict)
    output_kl_by_sequence: PerLayer = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-able values."""
        return asdict(self)


def diagnose(
    model: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int | None = None,
    memory_budget_gb: float | None = None,
) -> RoutingReport:
    """Compares a model's routing and predictions with those of each domain's source on that domain's text.

    Args:
        model: the merged checkpoint (folder or hub id).
        sources: one source model per domain.
        data: text per domain.
        dtype: what the models compute in, by default what `model` is stored in.
        device: where layers run.
        tokens_per_batch: tokens forwarded at once, padding included; by default 1024 on a CPU, 4096 elsewhere.
        memory_budget_gb: of the host's memory, as for harc.calibrate.

    Raises:
        ValueError, CheckpointError, NoRouterError: no text, models that do not fit together, or no routers.
    """
    merged, streams = open_models(model, sources, data, dtype, device)
    for index, sequences in enumerate(data):
        if not any(predicted(sequence) for sequence in sequences):
            raise ValueError(f"domain {index}: no tokens to diagnose on; at least one sequence of two tokens is needed")
    report = RoutingReport(list(merged.routers))
    batch = tokens_per_batch or batch_tokens(merged)
    most = max(sum(len(sequence) for sequence in sequences) for sequences in data)
    budget = states_budget(merged, memory_budget_gb, 2 * most, batch)
    for index, (source, sequences) in enumerate(zip(streams, data, strict=True)):
        store = Store(budget)
        of_merged, of_source = (HiddenStates(stream, sequences, batch, store) for stream in (merged, source))
        _diagnose_routing(report, index, of_merged, of_source)
        _diagnose_predictions(report, index, of_merged, of_source, sequences)
    return report


def open_models(
    model: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    dtype: torch.dtype | None,
    device: str,
) -> tuple[LayerStream, list[LayerStream]]:
    """A merged model and its sources, to be run side by side; dtype None: what the merged one is stored in.

    Raises:
        ValueError, CheckpointError, NoRouterError: not a text a source, or models that do not fit together.
    """
    if not sources or len(sources) != len(data):
        raise ValueError(f"expected text for every source, found {len(sources)} sources and {len(data)} data")
    opened = [open_checkpoint(source) for source in (model, *sources)]
    merged = LayerStream(opened[0], dtype=dtype, device=device)
    streams = [LayerStream(source, dtype=merged.dtype, device=device) for source in opened[1:]]
    for source in streams:
        _check_alike(merged, source)
    for note in check_family(opened[0], opened[1:]):
        log.warning("%s", note)
    return merged, streams


def _check_alike(merged: LayerStream, source: LayerStream) -> None:
    """Raises ValueError unless the two have as many layers, the same routed ones, and one vocabulary."""
    for what, found, expected in (
        ("layers", source.layers, merged.layers),
        ("routers in layers", list(source.routers), list(merged.routers)),
        ("a vocabulary of", *(stream.model.config.get_text_config().vocab_size for stream in (source, merged))),
    ):
        if found != expected:
            raise ValueError(
                f"{source.checkpoint.source}: {what} {found}, {expected} in {merged.checkpoint.source}; "
                "a source must be of the merged model's architecture"
            )


def _diagnose_routing(report: RoutingReport, index: int, merged: HiddenStates, source: HiddenStates) -> None:
    """Takes both models' hidden states from the embeddings to the last layer's output."""
    for state in (merged, source):
        with state.stream.loaded(None):
            state.embed()
    own, same = _Distances(), _Distances()
    for layer in range(merged.stream.layers):
        if layer not in report.layers:
            for state in (merged, source):
                with state.stream.loaded(layer):
                    state.forward(layer)
            continue
        [of_merged], x = _route(merged, layer)
        [of_source, of_source_on_x], _ = _route(source, layer, x)
        activation = merged.stream.routers[layer].activation
        own.add(of_source, of_merged, activation)
        same.add(of_source_on_x, of_merged, activation)
    own.write(report, index)
    same.write(report, index, "_same")
    report.tokens[index] = merged.tokens


def _diagnose_predictions(
    report: RoutingReport, index: int, merged: HiddenStates, source: HiddenStates, sequences: Sequence[TokenSequence]
) -> None:
    found = likelihood(merged, source, sequences)
    report.response_tokens[index] = found.tokens.tolist()
    for name in ("loss", "source_loss", "output_kl"):
        values = getattr(found, name)
        getattr(report, name)[index] = found.mean(values)
        getattr(report, f"{name}_by_sequence")[index] = values.tolist()


@dataclass(frozen=True)
class _Decisions:
    """Router logits (tokens, experts) and chosen experts (tokens, top_k) of one layer."""

    logits: Tensor
    chosen: Tensor


class _Distances:
    """Distances of one routing from another, gathered layer by layer."""

    def __init__(self) -> None:
        self.layers: dict[str, list[float]] = {"kl": [], "mismatch": [], "shift": [], "overlap": []}
        self.shifts: list[Tensor] = []
        self.moved: list[Tensor] = []

    def add(self, source: _Decisions, merged: _Decisions, activation: Activation) -> None:
        """Adds a layer."""
        self.moved.append(differ(source.chosen, merged.chosen))
        self.shifts.append(logit_shift(source.logits, merged.logits))
        values = {
            "kl": routing_kl(source.logits, merged.logits, activation),
            "mismatch": self.moved[-1],
            "shift": self.shifts[-1],
            "overlap": overlap(source.chosen, merged.chosen),
        }
        for name, of_tokens in values.items():
            self.layers[name].append(float(of_tokens.double().mean()))

    def write(self, report: RoutingReport, index: int, suffix: str = "") -> None:
        """Enters a domain's distances into the report, under names with `suffix`."""
        shifts = torch.cat(self.shifts).double()
        ordered, per_token = shifts.sort().values, torch.stack(self.moved).sum(0)
        bins = torch.histc(shifts.clamp(max=_EDGES[-1]), bins=len(_EDGES) - 1, min=0, max=_EDGES[-1])
        values: dict[str, Any] = {
            **self.layers,
            "shift_quantiles": {q: float(ordered[round(q * (len(ordered) - 1))]) for q in _QUANTILES},
            "shift_below": {limit: float((shifts < limit).double().mean()) for limit in (0.1, 0.2)},
            "shift_histogram": {"edges": list(_EDGES), "shares": (bins / len(shifts)).tolist()},
            "any_mismatch": float((per_token > 0).double().mean()),
            "mismatches_per_token": float(per_token.double().mean()),
        }
        for name, value in values.items():
            getattr(report, f"{name}{suffix}")[index] = value


def _route(
    state: HiddenStates, layer: int, *others: Float[Tensor, "tokens hidden"]
) -> tuple[list[_Decisions], Float[Tensor, "tokens hidden"]]:
    """Takes the tokens through a layer; its router's decisions on its own inputs and on the others, and the former.

    The inputs are valid until the next call for the same hidden states.
    """
    router, split = state.stream.routers[layer], state.splits(layer)
    with state.stream.loaded(layer):
        x = state.router_inputs(layer, split)
        moe = state.stream.moe(layer)
        decisions = [_decisions(router, moe, inputs, state.stream.device) for inputs in (x, *others)]
        state.complete(layer, x, split)
    return decisions, x


def _decisions(router: Router, moe: nn.Module, x: Float[Tensor, "tokens hidden"], device: torch.device) -> _Decisions:
    blocks = [_decide(router, moe, block.to(device)) for block in x.split(_BLOCK)]
    logits, chosen = zip(*((z.cpu(), indices.cpu()) for z, indices in blocks), strict=True)
    return _Decisions(torch.cat(logits), torch.cat(chosen))


def _decide(router: Router, moe: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return decided(router, run_router(moe, router.module, x, router.by_block))


def decided(router: Router, outputs: Tensor | tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """A router's logits and the experts it chooses itself (a selection bias or expert groups count), else the largest.

    outputs: what the router returned.
    """
    if isinstance(outputs, Tensor):
        return outputs.float(), outputs.topk(router.top_k, dim=-1).indices
    z = outputs[router.logits_index].float()
    own = (o for o in outputs if isinstance(o, Tensor) and o.dtype in (torch.int64, torch.int32))
    chosen = next((o for o in own if tuple(o.shape) == (len(z), router.top_k)), None)
    return z, (z.topk(router.top_k, dim=-1).indices if chosen is None else chosen.long())
