"""Cell records on disk: one JSON a cell in its Hydra directory, gathered by the report at the end of a sweep."""

import json
from pathlib import Path
from typing import Any

RECORD = "cell.json"


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Writes the record under its final name in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f".{RECORD}"
    beside.write_text(json.dumps(record, default=str))
    beside.rename(directory / RECORD)


def read_records(sweep: Path) -> list[dict[str, Any]]:
    """The records of a sweep, in the order of its jobs."""
    files = sorted(sweep.glob(f"*/{RECORD}"), key=lambda path: int(path.parent.name))
    return [json.loads(file.read_text()) for file in files]
