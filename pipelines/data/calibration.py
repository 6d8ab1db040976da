"""What a sample stage left: the calibration records of one domain."""

from pathlib import Path
from typing import Any

from pipelines.data import load_records
from pipelines.data.source import DataSource

REJECTED = "rejected.jsonl"


def calibration_records(sampled: Path) -> list[dict[str, Any]]:
    """The records that the stage in this directory kept."""
    made = [file for file in sampled.glob("*.jsonl") if file.name != REJECTED]
    return load_records(DataSource(path=str(made[0])))
