"""The swap stage: a call of harc.swap_routers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runner.estimate import Estimate, ModelSize
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import model


@dataclass
class SwapConfig:
    """A model with another model's routers."""

    model: str | None = None
    """Checkpoint whose routers are replaced, a folder or hub id (null: input `model`)."""

    routers: str | None = None
    """Checkpoint that the routers are taken from, a folder or hub id (null: input `routers`)."""


def swap(config: SwapConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes `model` with the routers of `routers`, both made by a stage or named in the config."""
    import harc

    changed = harc.swap_routers(model(inputs, "model", config.model), model(inputs, "routers", config.routers), out)
    return {"routers": changed}


def needs(node: Node, size: ModelSize) -> Estimate:
    """A layer in memory; on disk a model, since every shard has routers in it."""
    return Estimate(size.layer, size.model)


SPEC = Stage("swap", SwapConfig, swap, needs)
