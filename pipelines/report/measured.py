"""Values, intervals and paired differences of a table's rows, from the counts in their cells.

A row keeps its resamples, so that any contrast of rows has its paired interval (`contrast`), also those that a finding
asks for and the table does not print.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.report.bootstrap import half_width, interval, mean_of, resampled_means
from pipelines.report.table import Column, Gain, Row, Table

log = logging.getLogger(__name__)

MEASURES = [
    Column("routing_kl", "Routing KL", "KL", unit="nats", kind="measure", significant=3),
    Column("mismatch", "Decisions mismatched", "Mism.", unit="%", kind="measure", digits=2),
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
        row.values.update(measures(row.cell or {}))
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
    groups: dict[tuple[str, ...], list[tuple[Row, np.ndarray]]] = {}
    for row in rows:
        task = ((row.cell or {}).get("tasks") or {}).get(name)
        if task is None:
            continue
        if not task.get("counts"):
            row.values[name] = 100 * task["accuracy"]
            continue
        ids, shares = _shares(task)
        row.values[name] = 100 * float(shares.mean())
        if abs(row.values[name] - 100 * task.get("accuracy", shares.mean())) > 0.01:
            log.warning("%s, %s: accuracy %.4f is not what its counts give (%.4f); the table prints the counts'",
                        row.name, name, task["accuracy"], shares.mean())  # fmt: skip
        groups.setdefault(ids, []).append((row, shares))
    for ids, members in groups.items():
        means = resampled_means(np.stack([shares for _, shares in members], axis=1), stratum=(name, ids))
        for column, (row, _) in enumerate(members):
            row.draws[name] = 100 * means[:, column]
            row.problems[name] = frozenset([(name, ids)])


def _shares(task: Mapping[str, Any]) -> tuple[tuple[str, ...], np.ndarray]:
    counts = np.asarray(task["counts"], dtype=float) / task["samples"]
    ids = [str(one) for one in task.get("ids") or range(len(counts))]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return tuple(ids[i] for i in order), counts[order]


def _average(row: Row, name: str, parts: Sequence[str]) -> None:
    """The equally weighted mean of other columns, where the row has them all."""
    if parts and all(part in row.values for part in parts):
        row.values[name] = float(np.mean([row.values[part] for part in parts]))
        if all(part in row.draws for part in parts):
            row.draws[name] = mean_of([row.draws[part] for part in parts])
            row.problems[name] = frozenset().union(*(row.problems[part] for part in parts))


def measures(cell: Mapping[str, Any]) -> dict[str, float]:
    """What a cell says beside accuracy: the columns MEASURES that it has."""
    routing = cell.get("routing") or {}
    share = routing.get("mismatch_mean")
    values = {
        "routing_kl": routing.get("kl_mean"),
        "mismatch": None if share is None else 100 * share,
        "runtime_s": cell.get("runtime_s"),
        "peak_memory_gb": cell.get("peak_memory_gb"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}
