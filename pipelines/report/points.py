"""What is plotted of a table's rows: dots, levels, and the tables of plotted points that figures' table.csv holds."""

from collections.abc import Sequence

from pipelines.report.dots import Dot, Level
from pipelines.report.rows import method_label
from pipelines.report.table import Column, Row, Table

LAYER_KEYS = [
    Column("method", "Method", kind="key"),
    Column("harc", "HARC", kind="key"),
    Column("domain", "Domain", kind="key"),
    Column("layer", "Layer", kind="key"),
]


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


def by_domain(row: Row | None, measure: str, factor: float = 1.0, key: str = "routing") -> dict[str, list[float]]:
    """A row's measure of routing: domain -> a value a layer; empty for a row without it."""
    routing = ((row.cell if row else None) or {}).get(key) or {}
    return {domain: [factor * value for value in values] for domain, values in (routing.get(measure) or {}).items()}


def mean_by_layer(curves: dict[str, list[float]]) -> list[float]:
    """The mean of the domains, a value a layer."""
    return [sum(values) / len(values) for values in zip(*curves.values(), strict=True)]


def layer_points(rows: Sequence[Row], measures: Sequence[tuple[Column, str, float]]) -> Table:
    """A row a plotted point of curves by layer: rows (method, harc) times domains times layers; a gap stays one row.

    rows: with keys (method, harc). measures: column, name in the routing report, and what it is multiplied by.
    """
    points = []
    for row in rows:
        if row.status != "ok":
            points.append(Row((*row.key, "", ""), row.status, row.why))
            continue
        curves = {column.name: by_domain(row, name, factor) for column, name, factor in measures}
        for domain, values in next(iter(curves.values())).items():
            for layer in range(len(values)):
                at = {name: by_name[domain][layer] for name, by_name in curves.items()}
                points.append(Row((*row.key, domain, str(layer + 1)), "ok", values=at))
    return Table(LAYER_KEYS, [column for column, _, _ in measures], points, main="")
