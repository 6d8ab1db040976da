"""From cells to a table of accuracies in the paper's layout: rows in its order, domain means, intervals, gains.

Serves every table whose rows are (method, harc): tables 1, 5 and 6, and a sweep of one's own, whose layout is read off
its cells. Accuracy is METHOD section 8: a benchmark's mean over problems, a domain's mean of its benchmarks, overall
the mean of the domains.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.report.bootstrap import half_width, interval, mean_of, resampled_means
from pipelines.report.paper import read_paper
from pipelines.report.table import Column, Gain, Row, Table

log = logging.getLogger(__name__)

REFERENCES = ("individual", "base")
KEYS = [Column("method", "Method", kind="key"), Column("harc", "HARC", kind="key")]
MEASURES = [
    Column("routing_kl", "Routing KL", "KL", unit="nats", kind="measure", significant=3),
    Column("mismatch", "Decisions mismatched", "Mism.", unit="%", kind="measure", digits=2),
    Column("runtime_s", "Merge + calibrate", "Time", unit="s", kind="measure", digits=1),
    Column("peak_memory_gb", "Peak memory", "Mem.", unit="GB", kind="measure", digits=2),
]
_LABELS = {
    "gsm8k": ("GSM8K", "GSM8K"),
    "math500": ("MATH500", "MATH"),
    "humaneval_plus": ("HumanEval+", "HEval+"),
    "mbpp_plus": ("MBPP+", "MBPP+"),
    "ifeval": ("IFEval", "IFEval"),
    "commonsense_qa": ("CommonsenseQA", "CSQA"),
    "overall": ("Overall", "Overall"),
}


@dataclass(frozen=True)
class Layout:
    """Columns and rows to expect. domains: domain -> its benchmark columns, in order; rows: (method, harc)."""

    domains: dict[str, list[str]]
    rows: list[tuple[str, str]]
    paper: dict[tuple[str, ...], dict[str, float]]

    @property
    def columns(self) -> list[str]:
        """Benchmarks and means in the paper's order."""
        return [
            *(name for domain, tasks in self.domains.items() for name in (*tasks, f"{domain}_avg")),
            "overall",
        ]


def paper_layout(name: str) -> Layout:
    """The layout of one of the paper's tables, with its numbers."""
    header, rows = read_paper(name)
    domains: dict[str, list[str]] = {}
    tasks: list[str] = []
    for column in header[2:-1]:
        if column.endswith("_avg"):
            domains[column.removesuffix("_avg")], tasks = tasks, []
        else:
            tasks.append(column)
    keys = [(row["method"], row["harc"]) for row in rows]
    numbers: dict[tuple[str, ...], dict[str, float]] = {
        key: {name: float(row[name]) for name in header[2:]} for key, row in zip(keys, rows, strict=True)
    }
    return Layout(domains, keys, numbers)


def cells_layout(cells: Sequence[dict[str, Any]]) -> Layout:
    """The layout of a sweep that is no table of the paper: its cells' own columns, and rows in their order."""
    domains: dict[str, list[str]] = {}
    for cell in cells:
        for column, task in (cell.get("tasks") or {}).items():
            known = domains.setdefault(task["domain"], [])
            if column not in known:
                known.append(column)
    return Layout(domains, [], {})


def accuracy_table(cells: Sequence[dict[str, Any]], layout: Layout, *, paper: str | None = None) -> Table:
    """The table of these cells: the layout's rows first and in its order, others after them.

    Args:
        cells: records of one experiment at one scale.
        layout: rows and columns to expect; a row without a cell is a marked gap.
        paper: table of the paper to put beside the measured values, where the scale is the paper's.
    """
    published = paper_layout(paper).paper if paper else {}
    columns = [_column(name, layout, cells) for name in layout.columns] if layout.domains else []
    rows = _rows(cells, layout)
    for row in rows:
        row.paper = published.get(row.key, {})
    table = Table(KEYS, [*columns, *MEASURES], rows, paper=paper)
    _fill(table, layout)
    return table


def _column(name: str, layout: Layout, cells: Sequence[dict[str, Any]]) -> Column:
    measured = [task["task"] for cell in cells for column, task in (cell.get("tasks") or {}).items() if column == name]
    if name.endswith("_avg"):
        domain = name.removesuffix("_avg")
        label, short = f"{domain.capitalize()} avg", domain.capitalize()
        note = "mean"
    else:
        label, short = _LABELS.get(name, (name, name))
        note = measured[0] if measured else "mean" if name == "overall" else ""
    return Column(name, label, short, note=note, unit="%", best="max")


def _rows(cells: Sequence[dict[str, Any]], layout: Layout) -> list[Row]:
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in layout.rows}
    for cell in cells:
        key = (cell["row"]["method"], cell["row"]["harc"])
        # A cell that the sweep left out, with no row waiting for it, is no row at all.
        if cell["status"] != "excluded" or key in by_key:
            by_key.setdefault(key, []).append(cell)
    rows = []
    for (method, harc), group in by_key.items():
        baselines = len(by_key.get((method, "no"), []))
        for cell, suffix in zip(group, _suffixes(group), strict=True):
            baseline = (method + suffix if baselines > 1 else method, "no") if harc == "yes" else None
            rows.append(
                Row((method + suffix, harc), cell["status"], _one_line(cell.get("error")), harc == "yes", baseline)
            )
            rows[-1].reference = cell.get("merge") in REFERENCES
            rows[-1].cell = cell
        if not group:
            baseline = (method, "no") if harc == "yes" else None
            rows.append(Row((method, harc), "missing", "no cell of this sweep made it", harc == "yes", baseline))
            rows[-1].reference = method == "Individual"
    return rows


def _suffixes(group: Sequence[dict[str, Any]]) -> list[str]:
    """What tells cells of one row apart: the overrides that not all of them share."""
    if len(group) < 2:
        return [""] * len(group)
    chosen = [list(cell.get("overrides") or []) for cell in group]
    shared = set(chosen[0]).intersection(*chosen[1:])
    texts = [", ".join(word for word in words if word not in shared) for words in chosen]
    texts = [text or f"cell {i}" for i, text in enumerate(texts, 1)]
    if len(set(texts)) < len(texts):
        texts = [f"{text}, cell {i}" for i, text in enumerate(texts, 1)]
    return [f" [{text}]" for text in texts]


def _one_line(error: Any) -> str:
    return " ".join(str(error).split()) if error else ""


def _fill(table: Table, layout: Layout) -> None:
    """Values, intervals and gains of every row that has a cell."""
    draws: dict[int, dict[str, np.ndarray]] = {i: {} for i, row in enumerate(table.rows) if row.status == "ok"}
    for tasks in layout.domains.values():
        for name in tasks:
            _benchmark(table, name, draws)
    for i, drawn in draws.items():
        values = table.rows[i].values
        for domain, tasks in layout.domains.items():
            if all(name in values for name in tasks):
                values[f"{domain}_avg"] = float(np.mean([values[name] for name in tasks]))
                if all(name in drawn for name in tasks):
                    drawn[f"{domain}_avg"] = mean_of([drawn[name] for name in tasks])
        averages = [f"{domain}_avg" for domain in layout.domains]
        if averages and all(name in values for name in averages):
            values["overall"] = float(np.mean([values[name] for name in averages]))
            if all(name in drawn for name in averages):
                drawn["overall"] = mean_of([drawn[name] for name in averages])
        row = table.rows[i]
        row.ci95.update({name: half_width(sample) for name, sample in drawn.items()})
        row.values.update(_measures(row.cell or {}))
    _gains(table, draws)


def _benchmark(table: Table, name: str, draws: dict[int, dict[str, np.ndarray]]) -> None:
    """One benchmark's column: rows that were measured on the same problems are resampled together."""
    groups: dict[tuple[str, ...], list[tuple[int, np.ndarray]]] = {}
    for i in draws:
        task = ((table.rows[i].cell or {}).get("tasks") or {}).get(name)
        if task is None:
            continue
        if not task.get("counts"):
            table.rows[i].values[name] = 100 * task["accuracy"]
            continue
        ids, shares = _shares(task)
        table.rows[i].values[name] = 100 * float(shares.mean())
        if abs(table.rows[i].values[name] - 100 * task.get("accuracy", shares.mean())) > 0.01:
            log.warning("%s, %s: accuracy %.4f is not what its counts give (%.4f); the table prints the counts'",
                        table.rows[i].name, name, task["accuracy"], shares.mean())  # fmt: skip
        groups.setdefault(ids, []).append((i, shares))
    for ids, members in groups.items():
        means = resampled_means(np.stack([shares for _, shares in members], axis=1), stratum=(name, ids))
        for column, (i, _) in enumerate(members):
            draws[i][name] = 100 * means[:, column]


def _shares(task: dict[str, Any]) -> tuple[tuple[str, ...], np.ndarray]:
    counts = np.asarray(task["counts"], dtype=float) / task["samples"]
    ids = [str(one) for one in task.get("ids") or range(len(counts))]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return tuple(ids[i] for i in order), counts[order]


def _measures(cell: dict[str, Any]) -> dict[str, float]:
    routing = cell.get("routing") or {}
    share = routing.get("mismatch_mean")
    values = {
        "routing_kl": routing.get("kl_mean"),
        "mismatch": None if share is None else 100 * share,
        "runtime_s": cell.get("runtime_s"),
        "peak_memory_gb": cell.get("peak_memory_gb"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _gains(table: Table, draws: dict[int, dict[str, np.ndarray]]) -> None:
    pooled = []
    index = {id(row): i for i, row in enumerate(table.rows)}
    for i in draws:
        row = table.rows[i]
        other = table.baseline(row)
        if other is None or other.status != "ok":
            continue
        base = draws[index[id(other)]]
        for name, sample in draws[i].items():
            if name in base and _same_problems(row, other, name, table):
                low, high = interval(sample - base[name])
                row.gain[name] = Gain(row.values[name] - other.values[name], low, high)
                pooled += [sample - base[name]] if name == table.main else []
    if pooled:
        low, high = interval(mean_of(pooled))
        mean = np.mean([row.gain[table.main].value for row in table.rows if table.main in row.gain])
        table.pooled = Gain(float(mean), low, high)


def _same_problems(row: Row, other: Row, name: str, table: Table) -> bool:
    """Whether two rows answered the same problems in all that a column is made of: only then are they paired."""
    tasks = [(one.cell or {}).get("tasks") or {} for one in (row, other)]
    if name == "overall":
        wanted = set(tasks[0]) | set(tasks[1])
    elif name.endswith("_avg"):
        domain = name.removesuffix("_avg")
        wanted = {column for one in tasks for column, task in one.items() if task["domain"] == domain}
    else:
        wanted = {name}
    return all(
        column in tasks[0] and column in tasks[1] and _shares(tasks[0][column])[0] == _shares(tasks[1][column])[0]
        for column in wanted
    )
