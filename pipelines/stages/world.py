"""The world stage: the tiny world's tokenizer, training sets, calibration and held-out text, and problems."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.stage import Node, Stage


@dataclass
class WorldConfig:
    """What the procedural tiny world holds."""

    seed: int = 0
    """Of every choice; another seed is another world of the same kind."""

    vocabulary: int = 768
    """Tokens of the tokenizer."""

    max_length: int = 320
    """Longest sequence of the model, in tokens."""

    pretrain: int = 30000
    """Records of the pre-training mixture: arithmetic drills, code problems, and for the rest math problems."""

    drills: float = 0.25
    """Fraction of the mixture that is arithmetic drills (facts, a line each), from 0 to 1."""

    code: float = 0.3
    """Fraction of the mixture that is code problems, from 0 to 1."""

    finetune: int = 10000
    """Training records per domain; a quarter of chat's tells facts of the world, the others are problems."""

    calibration: int = 500
    """Calibration records per domain."""

    heldout: int = 500
    """Held-out records per domain, which routing and loss are measured on (how many it takes: docs/scales.md)."""

    validation: int = 100
    """Validation problems per benchmark, which settings are chosen on."""

    test: int = 200
    """Test problems per benchmark."""


def world(config: WorldConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes the world to `out` and returns the counts of what it wrote; it takes no inputs."""
    from pipelines.world.build import build_world

    return build_world(config, out)


def needs(node: Node, model: ModelSize) -> Estimate:
    """Text of a size that no model changes."""
    return Estimate(0.5, SMALL_GB)


def work(node: Node, model: ModelSize) -> Work:
    """Problems and text written by rule."""
    return Work(seconds=20)


SPEC = Stage("world", WorldConfig, world, needs, work=work, version=2)
