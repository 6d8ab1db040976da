"""The stand_ins stage: a rehearsal's data in the published formats, and a tokenizer, made by the tiny world's rules."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.stage import Node, Stage


@dataclass
class StandInsConfig:
    """How much of each there is."""

    seed: int = 0
    """Of every choice."""

    vocabulary: int = 1024
    """Tokens of the tokenizer at most."""

    train: int = 64
    """Training conversations of a domain."""

    records: int = 48
    """Records of a domain that are calibrated on or held out, and texts of no domain."""

    test: int = 4
    """Problems of a benchmark."""

    formats: dict[str, str] = field(default_factory=dict)
    """File of calibration prompts -> its format in pipelines/data/formats.py."""

    where: dict[str, Any] = field(default_factory=dict)
    """Domain -> the columns and values that its training rows are chosen by."""


def stand_ins(config: StandInsConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes the files to `out` and returns how many rows each has; it takes no inputs."""
    from pipelines.rehearsal.stand_ins import write_stand_ins

    return write_stand_ins(config, out)


def needs(node: Node, model: ModelSize) -> Estimate:
    """Text of a size that no model changes."""
    return Estimate(0.5, SMALL_GB)


def work(node: Node, model: ModelSize) -> Work:
    """Problems and text written by rule."""
    return Work(seconds=5)


SPEC = Stage("stand_ins", StandInsConfig, stand_ins, needs, work=work)
