"""Which cells may stand in one table: those of one experiment, scale, seed and code."""

from collections.abc import Sequence

from pipelines.record import CellRecord
from pipelines.report.registry import ReportError


def check_cells(experiment: str, scale: str, cells: Sequence[CellRecord]) -> None:
    """Refuses cells that do not belong together.

    Args:
        experiment: what every cell must be of.
        scale: the same.
        cells: records; those that a sweep left out count too.

    Raises:
        ReportError: no cells, or cells that differ in experiment, scale, seed, or the version of a stage or package;
            the message says in which, and what was found.
    """
    check_replicates(experiment, scale, cells)
    _one(experiment, "seed", cells, [cell.seed for cell in cells])


def check_replicates(experiment: str, scale: str, cells: Sequence[CellRecord]) -> None:
    """Refuses cells that do not belong together, whatever their seeds.

    Raises:
        ReportError: as `check_cells`.
    """
    if not cells:
        raise ReportError(f"{experiment}: no cells to report")
    for cell in cells:
        found = (cell.experiment, cell.scale)
        if found != (experiment, scale):
            raise ReportError(
                f"a cell of experiment {found[0]} at scale {found[1]} among those of {experiment} at {scale}: results "
                "of different experiments or scales are never mixed; point the sweep at a folder of its own"
            )
    for part in sorted({part for cell in cells for part in cell.versions}):
        _one(experiment, f"version of {part}", cells, [cell.versions.get(part) for cell in cells])


def _one(experiment: str, what: str, cells: Sequence[CellRecord], found: Sequence[object]) -> None:
    """Raises unless all cells agree."""
    first: dict[str, str] = {}
    for cell, value in zip(cells, found, strict=True):
        first.setdefault(str(value), _name(cell))
    if len(first) < 2:
        return
    listed = "; ".join(f"{value}: {name}" for value, name in first.items())
    raise ReportError(
        f"cells of {experiment} differ in the {what} ({listed}): results of different code or seeds are never mixed "
        "into a table; run the sweep again in one piece (finished stages stay)"
    )


def _name(cell: CellRecord) -> str:
    """A cell in a few words, one of its own."""
    words = " ".join(cell.overrides)
    return f"{cell.row.name}{f' ({words})' if words else ''}"
