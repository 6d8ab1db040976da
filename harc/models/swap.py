"""A model with another model's routers: what a merge would be if its routing were a source's (figure 1)."""

from pathlib import Path

from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint, replace_tensors
from harc.models.streaming import LayerStream


def swap_routers(model: str | Path | Checkpoint, routers: str | Path | Checkpoint, out: str | Path) -> int:
    """Writes `model` with the routers of `routers` to `out`, a complete checkpoint; returns how many were replaced.

    Shards without a router are linked, not copied; router weights are cast to the dtype stored in `model`.

    Raises:
        CheckpointError, NoRouterError: models that cannot be read, or whose routers do not fit together.
    """
    stream = LayerStream(model)
    giver = open_checkpoint(routers)
    missing = [key for router in stream.routers.values() for key in router.keys if key not in giver]
    if missing:
        raise CheckpointError(f"{giver.source}: no router {missing[0]}; is it of the other model's architecture?")
    weights = {key: giver.read(key) for router in stream.routers.values() for key in router.keys}
    replace_tensors(stream.checkpoint, out, weights)
    return len(stream.routers)
