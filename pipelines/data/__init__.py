"""Data sources as records: every format the project reads, normalised to one shape.

A record is a dict: `id`; `prompt` (the user turn, exactly what evaluation would send); `response` (the assistant turn,
or None); `task` (whose judge decides correctness, or None); `answer` (math gold); `problem` (code: prompt and tests).
A conversation of more than one exchange also has `messages`, all of it, and `prompt` is then its last user turn.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.formats import FORMATS, Format
from pipelines.data.read import Row, read_rows
from pipelines.data.source import DataSource

__all__ = ["FORMATS", "draw_records", "load_records"]

log = logging.getLogger(__name__)


def load_records(source: DataSource, world: Path | None = None) -> list[dict[str, Any]]:
    """All that `draw_records` gives, as a list; raises as it does."""
    return list(draw_records(source, world))


def draw_records(source: DataSource, world: Path | None = None) -> Iterator[dict[str, Any]]:
    """Reads, filters and normalises the rows of a source, one when it is asked for.

    Rows are shuffled (when `shuffle_seed` is set), filtered by `where`, brought to records, and made unique by prompt
    where the format repeats problems; then `skip` of them are dropped and `limit` kept. Two sources that differ only in
    `skip` and `limit` are thus disjoint when their ranges are.

    Args:
        source: what to read.
        world: the tiny world's directory, for paths that begin with `world:`.

    Raises:
        FileNotFoundError: the file or folder does not exist.
        ValueError: an unknown format, an empty or malformed file (file and line named), a missing column (with those
            found), or nothing left after filtering.
    """
    if source.format not in FORMATS:
        raise ValueError(f"{source.path}: unknown data format '{source.format}'; valid: {', '.join(sorted(FORMATS))}")
    form = FORMATS[source.format]
    counts: Counter[str] = Counter()
    records: Iterable[dict[str, Any]] = _records(_matching(read_rows(source, world), source, counts), form, counts)
    if form.unique:
        records = _unique(records, counts)
    end = None if source.limit is None else source.skip + source.limit
    drawn = 0
    for record in islice(records, source.skip, end):
        drawn += 1
        yield record
    if not drawn:
        raise ValueError(f"{source.path}: no records left of {counts['rows']} rows ({_explain(source, counts)})")
    dropped = {name: counts[name] for name in ("unusable", "repeated") if counts[name]}
    log.info("%s: %d records of %d rows read %s", source.path, drawn, counts["rows"], dropped or "")
    if source.limit is not None and drawn < source.limit:
        log.warning("%s: %d records where %d were asked for", source.path, drawn, source.limit)


def _matching(rows: Iterable[Row], source: DataSource, counts: Counter[str]) -> Iterator[Row]:
    for place, row in rows:
        counts["rows"] += 1
        for column, accepted in source.where.items():
            if column not in row:
                raise ValueError(f"{place}: no column '{column}' to filter on; found {sorted(row)}")
            if row[column] not in accepted:
                counts[f"{column}={row[column]}"] += 1
                break
        else:
            yield place, row


def _records(rows: Iterable[Row], form: Format, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for place, row in rows:
        missing = [column for column in form.columns if column not in row]
        if missing:
            raise ValueError(f"{place}: missing column {', '.join(map(repr, missing))}; found {sorted(row)}")
        try:
            record = form.record(row)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{place}: malformed row: {error}") from error
        if record is None:
            counts["unusable"] += 1
            continue
        yield record if record.get("id") else {**record, "id": place.rsplit("/", 1)[-1]}


def _unique(records: Iterable[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for record in records:
        if record["prompt"] in seen:
            counts["repeated"] += 1
            continue
        seen.add(record["prompt"])
        yield record


def _explain(source: DataSource, counts: Counter[str]) -> str:
    if source.where and counts:
        others = [f"{name} ({count})" for name, count in counts.most_common(12) if "=" in name]
        return f"where={dict(source.where)}, skip={source.skip}; rows left out: {', '.join(others) or 'none'}"
    return f"skip={source.skip}, unusable rows: {counts['unusable']}"
