"""Rows of a table from a sweep's cells: the expected ones first and in their order, gaps marked, nothing shifted."""

from collections.abc import Callable, Sequence

from pipelines.record import CellRecord
from pipelines.report.tables.table import Row

Key = tuple[str, ...]
NEVER_MADE = "no cell of this sweep made it"


def method_key(cell: CellRecord) -> Key:
    """The key (method, harc) of a cell's row."""
    return cell.row.method, cell.row.harc


def uncalibrated(key: Key) -> Key | None:
    """What a row (method, harc) is compared with: the same merge as it was; None for that one itself."""
    return (key[0], "no") if key[1] == "yes" else None


def rows_by_key(
    cells: Sequence[CellRecord],
    expected: Sequence[Key],
    key_of: Callable[[CellRecord], Key],
    *,
    baseline_of: Callable[[Key], Key | None],
) -> list[Row]:
    """A row a cell, under its key; a key that no cell has is a missing row.

    Args:
        cells: records, in any order.
        expected: keys that must be there, in the table's order; others follow in the order of their cells.
        key_of: a cell's key.
        baseline_of: key of the row that a row of this key is compared with.
    """
    by_key: dict[Key, list[CellRecord]] = {key: [] for key in expected}
    for cell in cells:
        key = key_of(cell)
        # A cell that the sweep left out, with no row waiting for it, is no row at all.
        if cell.status != "excluded" or key in by_key:
            by_key.setdefault(key, []).append(cell)
    rows = []
    for key, group in by_key.items():
        base = baseline_of(key)
        repeated = base is not None and len(by_key.get(base, [])) > 1
        for cell, suffix in zip(group, _suffixes(group), strict=True):
            baseline = (base[0] + suffix, *base[1:]) if base and repeated else base
            row = Row((key[0] + suffix, *key[1:]), cell.status, one_line(cell.error), baseline=baseline)
            row.cell = cell
            rows.append(row)
        if not group:
            rows.append(Row(key, "missing", NEVER_MADE, baseline=base))
    return rows


def _suffixes(group: Sequence[CellRecord]) -> list[str]:
    """What tells cells of one row apart: the overrides that not all of them share."""
    if len(group) < 2:
        return [""] * len(group)
    chosen = [cell.overrides for cell in group]
    shared = set(chosen[0]).intersection(*chosen[1:])
    texts = [", ".join(word for word in words if word not in shared) for words in chosen]
    texts = [text or f"cell {i}" for i, text in enumerate(texts, 1)]
    if len(set(texts)) < len(texts):
        texts = [f"{text}, cell {i}" for i, text in enumerate(texts, 1)]
    return [f" [{text}]" for text in texts]


def method_label(cell: CellRecord) -> str:
    """The merging method's own label: a row's name also says what was swapped or tuned after merging."""
    return cell.setting("merge.label")


def one_line(error: str | None) -> str:
    """An error's text without its line breaks; empty for none."""
    return " ".join(error.split()) if error else ""
