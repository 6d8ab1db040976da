"""Rows and points of routing measures by domain and layer: KL, mismatched decisions, logit shift."""

from collections.abc import Sequence

from pipelines.record import CellRecord
from pipelines.report.tables.accuracy import KEYS
from pipelines.report.tables.rows import method_key, rows_by_key, uncalibrated
from pipelines.report.tables.table import Column, Row, Table

KL = Column("routing_kl", "Routing KL", "KL", unit="nats", significant=3, interval=False)
MISMATCH = Column("mismatch", "Decisions mismatched", "Mism.", unit="%", significant=4, interval=False)
LAYER_KEYS = [*KEYS, Column("domain", "Domain", kind="key"), Column("layer", "Layer", kind="key")]


def routing_rows(cells: Sequence[CellRecord], marks: Sequence[str], methods: Sequence[str] = ()) -> list[Row]:
    """Rows (method, harc); gaps marked.

    Args:
        cells: of one sweep.
        marks: which rows a method has: `no` as merged, `yes` with HARC.
        methods: that must be there, by default those of the cells.
    """
    expected = [(method, mark) for method in methods or dict.fromkeys(cell.row.method for cell in cells)
                for mark in marks]  # fmt: skip
    rows = rows_by_key(cells, expected, method_key, baseline_of=uncalibrated)
    for row in rows:
        row.harc = row.key[1] == "yes"
        if row.cell and row.status == "ok":
            measured = {"runtime_s": row.cell.runtime_s, "peak_memory_gb": row.cell.peak_memory_gb}
            row.values |= {name: value for name, value in measured.items() if value is not None}
    return rows


def by_domain(row: Row | None, measure: str, factor: float = 1.0) -> dict[str, list[float]]:
    """A row's measure of routing: domain -> a value per layer; empty for a row without it."""
    if row is None or row.cell is None or row.cell.routing is None:
        return {}
    found = row.cell.routing.by_layer(measure)
    return {domain: [factor * value for value in values] for domain, values in found.items()}


def domains_of(rows: Sequence[Row], measure: str) -> list[str]:
    """The domains that a measure of these rows has, each once and in order."""
    return list(dict.fromkeys(domain for row in rows for domain in by_domain(row, measure)))


def mean_by_layer(curves: dict[str, list[float]]) -> list[float]:
    """The mean of the domains, a value per layer; empty where there is no domain."""
    return [sum(values) / len(values) for values in zip(*curves.values(), strict=True)]


def layer_points(rows: Sequence[Row], measures: Sequence[tuple[Column, str, float]]) -> Table:
    """Curves by layer as plotted points: rows (method, harc) times domains times layers; a gap stays one row.

    Args:
        rows: with keys (method, harc).
        measures: column, name of the measure in the record, and what it is multiplied by.
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
