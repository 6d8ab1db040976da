"""Values, intervals and paired differences of a table's rows, from the counts in their cells.

A row keeps its resamples, so that any contrast of rows has its paired interval (`contrast`), also those that a finding
asks for and the table does not print.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.record import CellRecord, TaskResult
from pipelines.report.pooling import replicates
from pipelines.report.statistics import half_width, interval, mean_of, mean_terms, replicated_means, weighted_terms
from pipelines.report.tables.table import Column, Gain, Row, Table

log = logging.getLogger(__name__)

MEASURES = [
    Column("routing_kl", "Routing KL", "KL", unit="nats", kind="measure", significant=3),
    Column("mismatch", "Decisions mismatched", "Mism.", unit="%", kind="measure", digits=2),
    Column("loss", "Held-out loss", "Loss", unit="nats a token", kind="measure", digits=4),
    Column("runtime_s", "Merge + calibrate", "Time", unit="s", kind="measure", digits=1),
    Column("peak_memory_gb", "Peak memory", "Mem.", unit="GB", kind="measure", digits=2),
]


def fill(table: Table, domains: Mapping[str, Sequence[str]]) -> None:
    """Fills in values, intervals and gains of every row that has a cell, and the table's mean gain.

    Args:
        table: with its rows; changed in place.
        domains: domain -> its benchmark columns. Means are computed for them all, printed or not.
    """
    measured = [row for row in table.rows if row.status == "ok"]
    for name in dict.fromkeys(name for tasks in domains.values() for name in tasks):
        _benchmark(measured, name)
    for row in measured:
        for domain, tasks in domains.items():
            _average(row, f"{domain}_avg", tasks)
        _average(row, "overall", [f"{domain}_avg" for domain in domains])
        row.ci95.update({name: half_width(drawn) for name, drawn in row.draws.items()})
        row.values.update(measures(row.cell) if row.cell else {})
    _source_loss(measured)
    fill_gains(table)


def fill_gains(table: Table) -> None:
    """The differences of rows from their baselines, each column's where both answered the same problems."""
    pooled = []
    for row in table.rows:
        other = table.baseline(row)
        if row.status != "ok" or other is None or other.status != "ok":
            continue
        gains = {name: difference(row, other, name) for name in row.draws}
        row.gain.update({name: gain for name, gain in gains.items() if gain})
        if table.main in row.gain:
            pooled.append(row.draws[table.main] - other.draws[table.main])
    if pooled:
        low, high = interval(mean_of(pooled))
        mean = np.mean([row.gain[table.main].value for row in table.rows if table.main in row.gain])
        table.pooled = Gain(float(mean), low, high)


def difference(row: Row | None, other: Row | None, name: str) -> Gain | None:
    """How far a row lies above another in a column, with its paired interval; see `contrast`."""
    return contrast([(1.0, row), (-1.0, other)], name)


def contrast(parts: Sequence[tuple[float, Row | None]], name: str) -> Gain | None:
    """A weighted sum of rows in a column with its paired 95 % interval; None unless all answered the same problems."""
    rows = [row for _, row in parts]
    if any(row is None or name not in row.draws for row in rows):
        return None
    given = [(weight, row) for weight, row in parts if row is not None]
    if len({row.problems[name] for _, row in given}) > 1:
        return None
    low, high = interval(np.sum([weight * row.draws[name] for weight, row in given], axis=0))
    return Gain(sum(weight * row.values[name] for weight, row in given), low, high)


def _benchmark(rows: Sequence[Row], name: str) -> None:
    """One benchmark's column: rows that were measured on the same problems are resampled together."""
    groups: dict[tuple[tuple[str, ...], ...], list[tuple[Row, list[np.ndarray], list[np.ndarray]]]] = {}
    for row in rows:
        tasks = [cell.tasks[name] for cell in replicates(row.cell) if name in cell.tasks]
        if not tasks:
            continue
        recorded = 100 * float(np.mean([task.accuracy for task in tasks]))
        if not all(task.counts for task in tasks):
            row.values[name] = recorded
            continue
        ids, shares, noise = zip(*map(_shares, tasks), strict=True)
        row.values[name] = 100 * float(np.mean([one.mean() for one in shares]))
        if abs(row.values[name] - recorded) > 0.01:
            log.warning("%s, %s: accuracy %.4f is not what its counts give (%.4f); the table prints the counts'",
                        row.name, name, recorded / 100, row.values[name] / 100)  # fmt: skip
        groups.setdefault(ids, []).append((row, list(shares), list(noise)))
    for ids, members in groups.items():
        by_seed = [np.stack(columns, axis=1) for columns in zip(*(shares for _, shares, _ in members), strict=True)]
        means = replicated_means(by_seed, stratum=(name, ids[0] if len(ids) == 1 else ids))
        for column, (row, shares, noise) in enumerate(members):
            row.draws[name] = 100 * means[:, column]
            row.terms[name] = weighted_terms([100 * one for one in shares], noise=[100**2 * one for one in noise])
            row.problems[name] = frozenset([(name, ids)])


def _shares(task: TaskResult) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The problems' ids in their order, the share of right samples of each, and that share's variance over samples."""
    counts = np.asarray(task.counts, dtype=float) / task.samples
    ids = task.ids or [str(number) for number in range(len(counts))]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    shares = counts[order]
    noise = shares * (1 - shares) / (task.samples - 1) if task.samples > 1 else np.full(len(shares), np.nan)
    return tuple(ids[i] for i in order), shares, noise


def _average(row: Row, name: str, parts: Sequence[str]) -> None:
    """The equally weighted mean of other columns, where the row has them all."""
    if parts and all(part in row.values for part in parts):
        row.values[name] = float(np.mean([row.values[part] for part in parts]))
        if all(part in row.draws for part in parts):
            row.draws[name] = mean_of([row.draws[part] for part in parts])
            row.problems[name] = frozenset().union(*(row.problems[part] for part in parts))
            row.terms[name] = mean_terms([row.terms[part] for part in parts], same_problems=False)


def _source_loss(rows: Sequence[Row]) -> None:
    """Gives the unmerged sources the loss that every merge's diagnosis measured of them on the same text."""
    found = {row.cell.routing.source_loss_mean for row in rows if row.cell and row.cell.routing} - {None}
    for row in rows:
        if row.cell and row.cell.merge == "individual" and len(found) == 1:
            row.values["loss"] = float(*found)  # type: ignore[arg-type]


def measures(cell: CellRecord) -> dict[str, float]:
    """What a cell says beside accuracy: the columns MEASURES that it has."""
    share = cell.routing.mismatch_mean if cell.routing else None
    values = {
        "routing_kl": cell.routing.kl_mean if cell.routing else None,
        "mismatch": None if share is None else 100 * share,
        "loss": cell.routing.loss_mean if cell.routing else None,
        "runtime_s": cell.runtime_s,
        "peak_memory_gb": cell.peak_memory_gb,
    }
    return {name: float(value) for name, value in values.items() if value is not None}
