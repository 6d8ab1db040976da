"""What a calibration is refused for, before any work: its data, its sources' routers, its memory, its output's name."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from harc.calibration.settings import Target
from harc.checkpoint import Checkpoint, CheckpointError, check_family
from harc.memory import budget_gb
from harc.models.hidden_states import hidden_size
from harc.models.streaming import LayerStream
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)


def check_calibration(
    stream: LayerStream,
    sources: Sequence[Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    out: Path,
    min_tokens: int | None,
    target: Target,
) -> None:
    """Holds sources, data and output of a calibration against the merged model.

    Raises:
        ValueError, CheckpointError: naming the file, domain or tensor, what was found and what was expected.
    """
    if not sources or len(sources) != len(data):
        raise ValueError(f"expected calibration data for every source, found {len(sources)} sources, {len(data)} data")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there already; choose another name or remove it")
    for index, sequences in enumerate(data):
        tokens = sum(len(sequence) for sequence in sequences)
        least = max(1, next(iter(stream.routers.values())).weight.shape[1] if min_tokens is None else min_tokens)
        if tokens < least:
            raise ValueError(
                f"domain {index} ({sources[index].source}): {tokens} calibration tokens, at least {least} needed; "
                "a router fitted to fewer tokens than it has inputs follows their accidents"
            )
        largest = max(int(sequence.ids.max()) for sequence in sequences if len(sequence))
        for model in (stream.checkpoint, *([sources[index]] if target == "source_inputs" else [])):
            vocabulary = model.config.get("vocab_size", 0)
            if vocabulary and largest >= vocabulary:
                raise ValueError(f"domain {index}: token id {largest}; {model.source} has {vocabulary} tokens")
    for note in check_family(stream.checkpoint, sources):
        log.warning("%s", note)
    keys = [key for router in stream.routers.values() for key in router.keys]
    for source in sources:
        for key in keys:
            expected = stream.checkpoint.tensors[key]
            if key not in source:
                raise CheckpointError(f"{source.source}: no router {key}; is it of the merged model's architecture?")
            if source.tensors[key].shape != expected.shape:
                raise CheckpointError(
                    f"{source.tensors[key].file}: router {key} has shape {source.tensors[key].shape}, "
                    f"{expected.shape} in {stream.checkpoint.source}"
                )
            if not torch.isfinite(source.read(key)).all():
                raise CheckpointError(f"{source.tensors[key].file}: NaN or Inf in router {key}")
    for key in keys:
        if not torch.isfinite(stream.checkpoint.read(key)).all():
            raise CheckpointError(f"{stream.checkpoint.tensors[key].file}: NaN or Inf in router {key}")


def batch_tokens(stream: LayerStream) -> int:
    """How many tokens are forwarded at once where nothing is said: few on a CPU, which more would not make faster."""
    return 1024 if stream.device.type == "cpu" else 4096


def states_budget(stream: LayerStream, memory_budget_gb: float | None, tokens: int, tokens_per_batch: int) -> float:
    """What a memory budget leaves for hidden states, in GB (None: of what is available now, see harc.memory).

    Taken off it: one layer's weights (on a CPU; elsewhere they are in the device's memory) and a batch on its way
    through; or a layer's routing statistics and a factor over the hidden size, should these be more.

    Raises:
        ValueError: a budget that is too small for that.
    """
    budget, said = budget_gb(memory_budget_gb)
    hidden, experts = hidden_size(stream), max(router.weight.shape[0] for router in stream.routers.values())
    weights = stream.weight_bytes() / 1e9 if stream.device.type == "cpu" else 0.0
    in_batch = min(tokens, tokens_per_batch)
    batch = 16 * in_batch * hidden * stream.dtype.itemsize / 1e9
    statistics = 4 * (tokens * experts + hidden**2) / 1e9
    needed = max(weights + batch, statistics)
    if not budget >= needed:
        remedy = "fewer tokens" if statistics > weights + batch else "a GPU, whose memory holds the weights,"
        raise ValueError(
            f"{said}: {stream.checkpoint.source} needs at least {needed:.3g} "
            f"({weights:.3g} for one layer's weights, {batch:.3g} for a batch of {in_batch} tokens; "
            f"{statistics:.3g} while a layer with {tokens} tokens is solved); {remedy} or that much memory makes it fit"
        )
    return budget - needed
