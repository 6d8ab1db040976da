"""How far a merged model's routing is from its sources', by layer and domain, on text not used for calibration.

Merged model and source run on the same text, each through its own layers, both a layer at a time; no more than one
layer's logits are held.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from harc.calibration_checks import batch_tokens, states_budget
from harc.checkpoint import Checkpoint, open_checkpoint
from harc.hidden_states import HiddenStates
from harc.measures import differ, logit_shift, routing_kl
from harc.routers import Router
from harc.store import Store
from harc.streaming import LayerStream
from harc.tokens import TokenSequence

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_EDGES = [round(0.02 * step, 2) for step in range(51)]  # of the histogram of logit shifts; the last bin takes the rest


@dataclass(frozen=True)
class RoutingReport:
    """Routing distances by domain (its index) and MoE layer.

    layers: decoder layer of each entry; kl (nats), mismatch (share of decisions), shift (mean relative logit shift):
    one value a layer; shift_quantiles: {quantile: value} over all tokens and layers; shift_below: {0.1: share, 0.2: …};
    shift_histogram: {"edges", "shares"}; any_mismatch: share of tokens with at least one mismatched decision;
    mismatches_per_token; tokens: of each domain.
    """

    layers: list[int]
    kl: dict[int, list[float]]
    mismatch: dict[int, list[float]]
    shift: dict[int, list[float]]
    shift_quantiles: dict[int, dict[float, float]] = field(default_factory=dict)
    shift_below: dict[int, dict[float, float]] = field(default_factory=dict)
    shift_histogram: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    any_mismatch: dict[int, float] = field(default_factory=dict)
    mismatches_per_token: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

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
    """Compares a model's routing with each domain's source model on that domain's text.

    Args:
        model: the merged checkpoint (folder or hub id).
        sources: a domain's source model each.
        data: a domain's text each.
        dtype: what the models compute in, by default what `model` is stored in.
        device: where layers run.
        tokens_per_batch: tokens forwarded at once, padding included; by default 1024 on a CPU, 4096 elsewhere.
        memory_budget_gb: of the host's memory, as for harc.calibrate.

    Raises:
        ValueError, CheckpointError, NoRouterError: no text, models that do not fit together, or no routers.
    """
    if not sources or len(sources) != len(data):
        raise ValueError(f"expected text for every source, found {len(sources)} sources and {len(data)} data")
    for index, sequences in enumerate(data):
        if not sum(len(sequence) for sequence in sequences):
            raise ValueError(f"domain {index}: no tokens to diagnose on")
    opened = [open_checkpoint(source) for source in (model, *sources)]
    merged = LayerStream(opened[0], dtype=dtype, device=device)
    report = RoutingReport(list(merged.routers), {}, {}, {})
    batch = tokens_per_batch or batch_tokens(merged)
    most = max(sum(len(sequence) for sequence in sequences) for sequences in data)
    budget = states_budget(merged, memory_budget_gb, 2 * most, batch)
    for index, sequences in enumerate(data):
        source = LayerStream(opened[index + 1], dtype=dtype or merged.dtype, device=device)
        if list(source.routers) != list(merged.routers):
            raise ValueError(f"{source.checkpoint.source}: routers in other layers than {merged.checkpoint.source}")
        _diagnose_domain(report, index, merged, source, sequences, batch, Store(budget))
    return report


def _diagnose_domain(
    report: RoutingReport,
    index: int,
    merged: LayerStream,
    source: LayerStream,
    sequences: Sequence[TokenSequence],
    tokens_per_batch: int,
    store: Store,
) -> None:
    pair = [HiddenStates(stream, sequences, tokens_per_batch, store) for stream in (merged, source)]
    for state in pair:
        with state.stream.loaded(None):
            state.embed()
    kl, share, shift = [], [], []
    count = torch.zeros(pair[0].tokens, dtype=torch.int64)
    shifts: list[Tensor] = []
    for layer in range(max(merged.routers) + 1):
        of_merged, of_source = (_route(state, layer) for state in pair)
        if of_merged is None or of_source is None:
            continue
        (z_merged, chosen_merged), (z_source, chosen_source) = of_merged, of_source
        moved = differ(chosen_source, chosen_merged)
        distance = logit_shift(z_source, z_merged)
        kl.append(float(routing_kl(z_source, z_merged, merged.routers[layer].activation).double().mean()))
        share.append(float(moved.double().mean()))
        shift.append(float(distance.double().mean()))
        count += moved
        shifts.append(distance)
    everything = torch.cat(shifts).double()
    ordered = everything.sort().values
    report.kl[index], report.mismatch[index], report.shift[index] = kl, share, shift
    report.shift_quantiles[index] = {q: float(ordered[round(q * (len(ordered) - 1))]) for q in _QUANTILES}
    report.shift_below[index] = {limit: float((everything < limit).double().mean()) for limit in (0.1, 0.2)}
    bins = torch.histc(everything.clamp(max=_EDGES[-1]), bins=len(_EDGES) - 1, min=0, max=_EDGES[-1])
    report.shift_histogram[index] = {"edges": list(_EDGES), "shares": (bins / len(everything)).tolist()}
    report.any_mismatch[index] = float((count > 0).double().mean())
    report.mismatches_per_token[index] = float(count.double().mean())
    report.tokens[index] = pair[0].tokens


def _route(state: HiddenStates, layer: int) -> tuple[Float[Tensor, "tokens experts"], Tensor] | None:
    """Takes the tokens through a layer; their router logits and chosen experts, None for a dense layer."""
    router = state.stream.routers.get(layer)
    split = router is not None and state.splits(layer)
    with state.stream.loaded(layer):
        if router is None:
            state.forward(layer)
            return None
        logits = torch.empty(state.tokens, router.weight.shape[0])
        chosen = torch.empty(state.tokens, router.top_k, dtype=torch.int64)
        x = state.router_inputs(layer, split)
        for start in range(0, state.tokens, 8192):
            z, indices = _decide(router, x[start : start + 8192].to(state.stream.device))
            logits[start : start + 8192] = z.cpu()
            chosen[start : start + 8192] = indices.cpu()
        state.complete(layer, x, split)
    return logits, chosen


def _decide(router: Router, x: Tensor) -> tuple[Tensor, Tensor]:
    """Router logits and the experts it chooses itself (a selection bias or expert groups count), else the largest."""
    outputs = router.module(x)
    if isinstance(outputs, Tensor):
        return outputs.float(), outputs.topk(router.top_k, dim=-1).indices
    z = outputs[router.logits_index].float()
    own = (o for o in outputs if isinstance(o, Tensor) and o.dtype in (torch.int64, torch.int32))
    chosen = next((o for o in own if tuple(o.shape) == (len(x), router.top_k)), None)
    return z, (z.topk(router.top_k, dim=-1).indices if chosen is None else chosen.long())
