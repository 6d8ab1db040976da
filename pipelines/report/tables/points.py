"""What is plotted of a table's rows: dots, levels, and the tables of plotted points that figures' table.csv holds."""

from collections.abc import Sequence

from pipelines.report.figures.dots import Dot, Level
from pipelines.report.figures.lines import Series
from pipelines.report.tables.rows import method_label
from pipelines.report.tables.table import Column, Row, Table


def method_of(row: Row | None, default: str = "WUDI-Merging") -> str:
    """The merging method of a row, whatever its key says: it decides the colour."""
    return method_label(row.cell) if row is not None and row.cell else default


def dot_of(
    row: Row, name: str, label: str, *, filled: bool = True, marker: str = "o", gain: bool = False, method: str = ""
) -> Dot:
    """A row's value in a column with its interval. gain: print the difference from the baseline beside it.

    method: decides the colour, by default that of the row's cell.
    """
    value, half = row.values.get(name), row.ci95.get(name)
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    difference = row.gain.get(name) if gain else None
    mark = f"{difference.value:+.2f}{'*' if difference.clear else ''}".replace("-", "−") if difference else ""
    return Dot(
        label, method or method_of(row), value, low, high, filled, marker, mark, bool(difference and difference.clear)
    )


def level_of(row: Row | None, name: str, label: str = "uncalibrated") -> Level | None:
    """A row as a line across a figure; None where it has no value."""
    if row is None or name not in row.values:
        return None
    return Level(label, method_of(row), row.values[name], row.ci95.get(name, 0.0))


def series_of(rows: Sequence[Row], x: Sequence[float], method: str, spread: Sequence[Sequence[float]] = ()) -> Series:
    """Overall accuracy of calibrated rows as a line over x, with intervals. spread: further values at each x."""
    values = [row.values.get("overall") for row in rows]
    ends = [
        (None, None) if value is None else (value - half, value + half)
        for value, half in ((row.values.get("overall"), row.ci95.get("overall", 0.0)) for row in rows)
    ]
    return Series(
        f"{method} + HARC", method, x, values, [low for low, _ in ends], [high for _, high in ends], spread=spread
    )


def domain_points(table: Table, domains: Sequence[str]) -> Table:
    """A row a plotted point of a figure by domain: the rows of `table` times its domains' means."""
    column = Column("accuracy", "Accuracy", unit="%")
    rows = []
    for row in table.rows:
        for domain in domains:
            name = f"{domain}_avg"
            point = Row(
                (*row.key, domain), row.status, row.why, baseline=(*row.baseline, domain) if row.baseline else None
            )
            if name in row.values:
                point.values["accuracy"] = row.values[name]
            if name in row.ci95:
                point.ci95["accuracy"] = row.ci95[name]
            if name in row.gain:
                point.gain["accuracy"] = row.gain[name]
            rows.append(point)
    return Table([*table.keys, Column("domain", "Domain", kind="key")], [column], rows, main="accuracy")
