"""Rows of a file, a folder or a Hugging Face dataset, each with the place it came from (for messages)."""

import logging
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eval.data import json_lines
from pipelines.data.source import DataSource
from pipelines.places import DATA_FILES, on_disk

Row = tuple[str, dict[str, Any]]

log = logging.getLogger(__name__)

_JSON_LINES = (".jsonl", ".jsonl.gz", ".json")
_SHUFFLE_BUFFER = 20_000


def read_rows(source: DataSource, world: Path | None) -> Iterable[Row]:
    """All rows of the source, shuffled when it has a `shuffle_seed`; huge hub datasets are streamed.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an empty or malformed file (file and line named), or a hub dataset that cannot be loaded.
    """
    path = local_path(source.path, world)
    if path is None:
        return _hub_rows(source)
    files = _data_files(path, source.split)
    if not files:
        return _dataset_rows(source, _saved_dataset(path, source.split))
    if files[0].name.endswith(_JSON_LINES):
        rows = [row for file in files for row in json_lines(file)]
        if source.shuffle_seed is not None:
            random.Random(source.shuffle_seed).shuffle(rows)
        return rows
    return _dataset_rows(source, _parquet_dataset(files))


def local_path(name: str, world: Path | None) -> Path | None:
    """The existing local path meant by `name`; None when it can only be a hub id."""
    if name.startswith("world:"):
        if world is None:
            raise ValueError(f"{name}: this source is a file of the tiny world, and no world was given")
        name = str(Path(world) / name.removeprefix("world:"))
    return on_disk(name)


def _data_files(path: Path, split: str) -> list[Path]:
    """The JSON lines or parquet files of a path; empty for a folder written by `Dataset.save_to_disk`."""
    if path.is_file():
        if not path.name.endswith(DATA_FILES):
            raise ValueError(f"{path}: expected a file ending in {', '.join(DATA_FILES)}")
        return [path]
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return []
    for suffixes in (_JSON_LINES, (".parquet",)):
        found = sorted(
            file
            for file in path.rglob("*")
            if file.name.endswith(suffixes) and not file.name.startswith((".", "dataset_"))
        )
        if found:
            # a hub snapshot names its files by split: train-00000-of-00004.parquet
            return [file for file in found if file.name.startswith((f"{split}-", f"{split}."))] or found
    raise ValueError(f"{path}: no {' or '.join(DATA_FILES)} file in this folder")


def _parquet_dataset(files: list[Path]) -> Any:
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import parquet

    tables = []
    for file in files:
        try:
            tables.append(parquet.read_table(file, memory_map=True))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable parquet file: {error}") from error
    if not sum(table.num_rows for table in tables):
        raise ValueError(f"{files[0]}: the data file is empty")
    return Dataset(pa.concat_tables(tables))


def _saved_dataset(path: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"{path}: no split '{split}'; found {sorted(dataset)}")
        dataset = dataset[split]
    return dataset


def _dataset_rows(source: DataSource, dataset: Any) -> Iterator[Row]:
    order = list(range(len(dataset)))
    if source.shuffle_seed is not None:
        random.Random(source.shuffle_seed).shuffle(order)
    dataset = dataset.select(order)
    for index, row in zip(order, dataset, strict=True):
        yield f"{source.path}:{index + 1}", row


def _hub_rows(source: DataSource) -> Iterator[Row]:
    """Rows of a hub dataset; streamed when a limit is set, so that a few thousand rows do not cost gigabytes."""
    from datasets import load_dataset

    streaming = source.limit is not None and not source.whole
    try:
        dataset = load_dataset(source.path, source.name, split=source.split, streaming=streaming)
        if not streaming:
            yield from _dataset_rows(source, dataset)
            return
        if source.shuffle_seed is not None:
            dataset = dataset.shuffle(seed=source.shuffle_seed, buffer_size=_SHUFFLE_BUFFER)
        for index, row in enumerate(dataset):
            yield f"{source.path}:{index + 1}", row
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source.path} (split {source.split}): cannot be loaded from the Hugging Face hub: {reason}; "
            "to use a local copy, set the source's path to its file or folder"
        ) from error
