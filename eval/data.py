"""Benchmark files: JSON lines, plain or gzipped, one problem a line."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


class DataError(ValueError):
    """A data file is missing, empty or malformed; the message names the file and the line."""


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl or .jsonl.gz file, one at a time, each with its place as FILE:LINE.

    Raises:
        DataError: a line that is not a JSON object, a file that is damaged or has no lines.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    number, found = 0, False
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
                    found = True
                    yield f"{path}:{number}", row
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not valid JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number + 1}: not UTF-8 text") from error
    except (EOFError, OSError) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read: {error}") from error
    if not found:
        raise DataError(f"{path}:1: the data file is empty")


def read_jsonl(path: Path | str, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, each with at least the `required` keys.

    Raises:
        DataError: no such file, no rows, a line that is not a JSON object, or a row without a required key.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    rows = []
    for place, row in json_lines(path):
        if missing := [key for key in required if key not in row]:
            raise DataError(f"{place}: no {', '.join(map(repr, missing))}; found {sorted(row)}")
        rows.append(row)
    return rows


def problems_from_file(path: Path | str, required: Sequence[str], **metadata: Any) -> dict[str, "Dataset"]:
    """A benchmark file as lm-eval's test split; EvalPlus's and IFEval's rows go as JSON, of no one type."""
    from datasets import Dataset

    rows = read_jsonl(path, required)
    if "task_id" in required:
        rows = [
            {
                "task_id": row["task_id"],
                "prompt": row["prompt"],
                "canonical_solution": row["canonical_solution"],
                "problem": json.dumps(row),
            }
            for row in rows
        ]
    elif "instruction_id_list" in required:
        rows = [{"key": row["key"], "prompt": row["prompt"], "problem": json.dumps(row)} for row in rows]
    else:
        rows = [{key: row[key] for key in (*required, *(k for k in ("id", "unique_id") if k in row))} for row in rows]
    return {"test": Dataset.from_list(rows)}
