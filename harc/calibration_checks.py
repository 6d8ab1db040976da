"""What a calibration is refused for, before any work: its data, its sources' routers, its output's name."""

from collections.abc import Sequence
from pathlib import Path

import torch

from harc.checkpoint import Checkpoint, CheckpointError
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
