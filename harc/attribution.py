"""How much of what a merge costs its routing holds, and how much the weights that it routes to.

Four models run side by side on the same text, a layer of each weight set in memory:

    L_s        the source
    L_m        the merged model
    L_m|s      the merged model, each layer routed as the source routed the token there (its router's outputs replayed)
    L_s|m      the source, routed as the merged model did

Routing is replayed whole: expert choices and their weights. What merging costs, L_m − L_s, is divided by Shapley's
rule, each part counted both with and without the other:

    routing   ½ [(L_m − L_m|s) + (L_s|m − L_s)]
    weights   ½ [(L_m|s − L_s) + (L_m − L_s|m)]        their sum is L_m − L_s
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from harc.calibration.checks import batch_tokens, states_budget
from harc.checkpoint import Checkpoint
from harc.diagnosis import decided, open_models
from harc.likelihood import likelihood, predicted
from harc.measures import differ
from harc.models.hidden_states import HiddenStates
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.tokens import TokenSequence

__all__ = ["Attribution", "attribute"]


@dataclass(frozen=True)
class Attribution:
    """One domain's. Losses are of each sequence, in nats a predicted token (its response's, see harc.likelihood).

    layers: the decoder layers with a router.
    mismatch: whether merged model and source chose other experts, of each such layer and token.
    starts: each sequence's first token among them.
    tokens: predicted tokens of each sequence.
    source, merged, merged_routed, source_routed: L_s, L_m, L_m|s, L_s|m.
    greedy_source, greedy_merged, greedy_routed: predicted tokens that are the most probable ones, up to the first that
        is not: of the source, of the merged model, and of the latter routed as the source.
    """

    layers: list[int]
    mismatch: Bool[Tensor, "layers tokens"]
    starts: list[int]
    tokens: Int64[Tensor, "sequences"]
    source: Float[Tensor, "sequences"]
    merged: Float[Tensor, "sequences"]
    merged_routed: Float[Tensor, "sequences"]
    source_routed: Float[Tensor, "sequences"]
    greedy_source: Int64[Tensor, "sequences"]
    greedy_merged: Int64[Tensor, "sequences"]
    greedy_routed: Int64[Tensor, "sequences"]

    @property
    def cost(self) -> Float[Tensor, "sequences"]:
        """What merging costs each sequence."""
        return self.merged - self.source

    @property
    def routing(self) -> Float[Tensor, "sequences"]:
        """What the routing holds of each sequence's cost."""
        return ((self.merged - self.merged_routed) + (self.source_routed - self.source)) / 2

    @property
    def weights(self) -> Float[Tensor, "sequences"]:
        """What all else holds: experts, attention, norms, embeddings."""
        return ((self.merged_routed - self.source) + (self.merged - self.source_routed)) / 2


def attribute(
    merged: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int | None = None,
    memory_budget_gb: float | None = None,
) -> list[Attribution]:
    """Divides what merging costs on each domain's text between the routing and the weights.

    A router that hands on its logits alone, for its block to choose by, has its logits replayed; a selection bias of
    the block stays the model's own.

    Args:
        merged: the merged checkpoint (folder or hub id).
        sources: one source model per domain.
        data: text per domain; a sequence's response is what is predicted, or all of it where it has none.
        dtype: what the models compute in, by default what `merged` is stored in.
        device: where layers run.
        tokens_per_batch: tokens forwarded at once, padding included; by default 1024 on a CPU, 4096 elsewhere.
        memory_budget_gb: of the host's memory, as for harc.calibrate.

    Raises:
        ValueError, CheckpointError, NoRouterError: no text, models that do not fit together, or no routers.
    """
    stream, others = open_models(merged, sources, data, dtype, device)
    for index, sequences in enumerate(data):
        if not sequences or not all(predicted(sequence) for sequence in sequences):
            raise ValueError(f"domain {index}: expected sequences of two tokens or more, of one at least")
    batch = tokens_per_batch or batch_tokens(stream)
    most = max(sum(len(sequence) for sequence in sequences) for sequences in data)
    budget = states_budget(stream, memory_budget_gb, 4 * most, batch)
    return [
        _attribute(stream, source, sequences, batch, Store(budget))
        for source, sequences in zip(others, data, strict=True)
    ]


def _attribute(
    merged: LayerStream, source: LayerStream, sequences: Sequence[TokenSequence], batch: int, store: Store
) -> Attribution:
    own_m, routed_m = (HiddenStates(merged, sequences, batch, store) for _ in range(2))
    own_s, routed_s = (HiddenStates(source, sequences, batch, store) for _ in range(2))
    for stream, states in ((merged, (own_m, routed_m)), (source, (own_s, routed_s))):
        with stream.loaded(None):
            for state in states:
                state.embed()
    moved = []
    for layer in range(merged.layers):
        with merged.loaded(layer), source.loaded(layer):
            if layer not in merged.routers:
                for state in (own_m, routed_m, own_s, routed_s):
                    state.forward(layer)
                continue
            router_m, router_s = merged.routers[layer], source.routers[layer]
            with _recorded(router_m.module) as by_merged:
                own_m.forward(layer)
            with _recorded(router_s.module) as by_source:
                own_s.forward(layer)
            with _replayed(router_m.module, by_source):
                routed_m.forward(layer)
            with _replayed(router_s.module, by_merged):
                routed_s.forward(layer)
            one, other = (torch.empty(own_m.tokens, router.top_k, dtype=torch.int64) for router in (router_m, router_s))
            for (rows, _, mask), of_m, of_s in zip(own_m.batches, by_merged, by_source, strict=True):
                real = mask.flatten().bool()
                for chosen, router, outputs in ((one, router_m, of_m), (other, router_s, of_s)):
                    chosen[rows] = decided(router, outputs)[1].cpu().reshape(len(real), -1)[real]
            moved.append(differ(other, one))
    own, routed = likelihood(own_m, own_s, sequences), likelihood(routed_m, routed_s, sequences)
    starts = [0]
    for sequence in sequences[:-1]:
        starts.append(starts[-1] + len(sequence))
    return Attribution(
        list(merged.routers),
        torch.stack(moved),
        starts,
        own.tokens,
        own.source_loss,
        own.loss,
        routed.loss,
        routed.source_loss,
        own.source_greedy,
        own.greedy,
        routed.greedy,
    )


@contextlib.contextmanager
def _recorded(router: nn.Module) -> Iterator[list[Any]]:
    """Lists what a router returns, call by call."""
    calls: list[Any] = []
    tap = router.register_forward_hook(lambda _, __, output: calls.append(output))
    try:
        yield calls
    finally:
        tap.remove()


@contextlib.contextmanager
def _replayed(router: nn.Module, calls: Sequence[Any]) -> Iterator[None]:
    """Lets a router return what another one returned, call by call.

    Raises:
        RuntimeError: another number of calls.
    """
    waiting = iter(calls)
    tap = router.register_forward_hook(lambda *_: next(waiting))
    try:
        yield
    finally:
        tap.remove()
    if next(waiting, None) is not None:
        raise RuntimeError(f"{type(router).__name__} was called fewer than {len(calls)} times")
