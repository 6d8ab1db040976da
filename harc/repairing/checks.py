"""What a repair is refused for, before any work: its models, its memory."""

from collections.abc import Sequence

from harc.checkpoint import Checkpoint, check_sources
from harc.memory import budget_gb
from harc.models.hidden_states import hidden_size
from harc.models.streaming import LayerStream


def check_models(stream: LayerStream, sources: Sequence[Checkpoint]) -> None:
    """Holds sources against the merged model: all their linear maps are read.

    Raises:
        CheckpointError: another architecture, vocabulary, tensor or shape.
        ValueError: computing in a narrower dtype than the weights are stored in.
    """
    check_sources(stream.checkpoint, sources)
    widest = max(
        (info.dtype for info in stream.checkpoint.tensors.values() if info.dtype.is_floating_point),
        key=lambda dtype: dtype.itemsize,
    )
    if stream.dtype.itemsize < widest.itemsize:
        raise ValueError(
            f"dtype is {stream.dtype}: {stream.checkpoint.source} is stored in {widest}, and its weights would be "
            "rounded; leave dtype out"
        )


def states_budget(
    stream: LayerStream, sources: int, memory_budget_gb: float | None, tokens: int, tokens_per_batch: int
) -> float:
    """What a memory budget leaves for hidden states, in GB (None: of what is available now, see harc.memory).

    Taken off it: a layer's weights of the merged model and every source (on a CPU; elsewhere they are in the device's
    memory), a batch on its way through, and the sums and factors of the widest group of maps.

    Raises:
        ValueError: a budget that is too small for that.
    """
    budget, said = budget_gb(memory_budget_gb)
    on_host = stream.device.type == "cpu"
    hidden = hidden_size(stream)
    weights = (1 + sources) * stream.weight_bytes() / 1e9 if on_host else 0.0
    batch = 16 * min(tokens, tokens_per_batch) * hidden * stream.dtype.itemsize / 1e9
    sums = 8 * _sums(stream) / 1e9 if on_host else 0.0
    needed = weights + batch + sums
    if not budget >= needed:
        raise ValueError(
            f"{said}: {stream.checkpoint.source} needs at least {needed:.3g} "
            f"({weights:.3g} for one layer's weights of {1 + sources} models, {batch:.3g} for a batch, {sums:.3g} for "
            "the sums of a map); a GPU, whose memory holds the weights and sums, or that much memory makes it fit"
        )
    return budget - needed


def _sums(stream: LayerStream) -> int:
    """Float64 numbers held while a map is fitted: Gram matrices and cross products twice, a factor, steps."""
    most = 0
    for name, value in stream.model.named_parameters():
        if name.startswith(stream.prefix) and value.ndim >= 2:
            rows, columns = value.shape[-2:]
            most = max(most, 4 * min(rows, columns) ** 2 + 5 * rows * columns, 4 * columns**2 + 5 * rows * columns)
    return most
