"""What a calibration is refused for, before any work: its data, its sources' routers, its memory, its output's name."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch

from harc.checkpoint import Checkpoint, CheckpointError
from harc.hidden_states import hidden_size
from harc.streaming import LayerStream
from harc.tokens import TokenSequence


def check_calibration(
    stream: LayerStream,
    sources: Sequence[Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    out: Path,
    min_tokens: int | None,
) -> None:
    """Holds sources, data and output of a calibration against the merged model.

    Raises:
        ValueError, CheckpointError: naming the file, domain or tensor, what was found and what was expected.
    """
    if not sources or len(sources) != len(data):
        raise ValueError(f"expected calibration data for every source, found {len(sources)} sources, {len(data)} data")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there already; choose another name or remove it")
    vocabulary = stream.checkpoint.config.get("vocab_size", 0)
    for index, sequences in enumerate(data):
        tokens = sum(len(sequence) for sequence in sequences)
        least = max(1, next(iter(stream.routers.values())).weight.shape[1] if min_tokens is None else min_tokens)
        if tokens < least:
            raise ValueError(
                f"domain {index} ({sources[index].source}): {tokens} calibration tokens, at least {least} needed; "
                "a router fitted to fewer tokens than it has inputs follows their accidents"
            )
        largest = max(int(sequence.ids.max()) for sequence in sequences if len(sequence))
        if vocabulary and largest >= vocabulary:
            raise ValueError(f"domain {index}: token id {largest}; {stream.checkpoint.source} has {vocabulary} tokens")
    for source in sources:
        for layer, router in stream.routers.items():
            key, expected = router.checkpoint_key, stream.checkpoint.tensors[router.checkpoint_key]
            if key not in source:
                raise CheckpointError(f"{source.source}: no router {key}; is it of the merged model's architecture?")
            if source.tensors[key].shape != expected.shape:
                raise CheckpointError(
                    f"{source.tensors[key].file}: router {key} has shape {source.tensors[key].shape}, "
                    f"{expected.shape} in {stream.checkpoint.source}"
                )
            if not torch.isfinite(stream.router_weight(layer, source)).all():
                raise CheckpointError(f"{source.tensors[key].file}: NaN or Inf in router {key}")
    for layer, router in stream.routers.items():
        if not torch.isfinite(stream.router_weight(layer)).all():
            raise CheckpointError(f"{stream.checkpoint.source}: NaN or Inf in router {router.checkpoint_key}")


def choose_layers(stream: LayerStream, layers: int | str) -> list[int]:
    """The layers to calibrate: all with a router, the last n of them, or a share such as "25%" (rounded up).

    Raises:
        ValueError: more layers than there are, a negative number, something else.
    """
    available = list(stream.routers)
    if layers == "all":
        return available
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", layers) if isinstance(layers, str) else None
    if share and 0 < Fraction(share[1]) <= 100:
        count = math.ceil(Fraction(share[1]) * len(available) / 100)
    elif isinstance(layers, int) and 0 <= layers <= len(available):
        count = layers
    else:
        raise ValueError(
            f"layers is {layers!r}: expected 'all', a number from 0 to {len(available)}, or a share such as '25%'"
        )
    return available[len(available) - count :]


def batch_tokens(stream: LayerStream) -> int:
    """How many tokens are forwarded at once where nothing is said: few on a CPU, which more would not make faster."""
    return 1024 if stream.device.type == "cpu" else 4096


def states_budget(
    stream: LayerStream, memory_budget_gb: float | None, tokens: int, tokens_per_batch: int
) -> float | None:
    """What a memory budget leaves for hidden states, in GB (None: no limit).

    Taken off it: one layer's weights (on a CPU; elsewhere they are in the device's memory) and a batch on its way
    through; or a layer's routing statistics and a factor over the hidden size, should these be more.

    Raises:
        ValueError: a budget that is too small for that.
    """
    if memory_budget_gb is None:
        return None
    hidden, experts = hidden_size(stream), max(router.weight.shape[0] for router in stream.routers.values())
    weights = stream.weight_bytes() / 1e9 if stream.device.type == "cpu" else 0.0
    in_batch = min(tokens, tokens_per_batch)
    batch = 16 * in_batch * hidden * stream.dtype.itemsize / 1e9
    statistics = 4 * (tokens * experts + hidden**2) / 1e9
    needed = max(weights + batch, statistics)
    if not memory_budget_gb >= needed:
        raise ValueError(
            f"memory_budget_gb is {memory_budget_gb:g}: {stream.checkpoint.source} needs at least {needed:.3g} "
            f"({weights:.3g} for one layer's weights, {batch:.3g} for a batch of {in_batch} tokens; "
            f"{statistics:.3g} while a layer with {tokens} tokens is solved); raise it, or leave it out"
        )
    return memory_budget_gb - needed
