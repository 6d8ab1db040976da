"""Benchmark files: JSON lines, plain or gzipped, one problem a line."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """A data file is missing, empty or malformed; the message names the file and the line."""


def read_jsonl(path: Path | str, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, each with at least the `required` keys.

    Raises:
        DataError: no such file, no rows, a line that is not a JSON object, or a row without a required key.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(path, number, line, required))
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text: {error}") from error
    if not rows:
        raise DataError(f"{path}: holds no problems")
    return rows


def _row(path: Path, number: int, line: str, required: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
    missing = [key for key in required if key not in row]
    if missing:
        raise DataError(f"{path}, line {number}: no {', '.join(map(repr, missing))}; found {sorted(row)}")
    return row
