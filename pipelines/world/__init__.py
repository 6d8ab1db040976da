"""The tiny world: a procedural, seeded stand-in for models' data and benchmarks, made in seconds."""

from pipelines.stages.world import WorldConfig
from pipelines.world.build import build_world

__all__ = ["WorldConfig", "build_world"]
