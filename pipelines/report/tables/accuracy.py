"""From cells to a table of accuracies in the paper's layout: rows in its order, domain means, intervals, gains.

`accuracy_table` serves tables whose rows are (method, harc): 1, 5 and 6, and a sweep of one's own, whose layout is read
off its cells; `setting_table` those whose rows are what an experiment varies. Accuracy is METHOD section 8: a
benchmark's mean over problems, a domain's mean of its benchmarks, overall the mean of the domains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.record import CellRecord
from pipelines.report.paper import read_paper
from pipelines.report.tables.measured import MEASURES, fill
from pipelines.report.tables.rows import method_key, rows_by_key, uncalibrated
from pipelines.report.tables.table import Column, Table

REFERENCES = ("individual", "base")
KEYS = [Column("method", "Method", kind="key"), Column("harc", "HARC", kind="key")]
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


def cells_layout(cells: Sequence[CellRecord]) -> Layout:
    """The layout of a sweep that is no table of the paper: its cells' own columns, and rows in their order."""
    domains: dict[str, list[str]] = {}
    for cell in cells:
        for column, task in cell.tasks.items():
            known = domains.setdefault(task.domain, [])
            if column not in known:
                known.append(column)
    return Layout(domains, [], {})


def accuracy_table(cells: Sequence[CellRecord], layout: Layout, *, paper: str | None = None) -> Table:
    """The table of these cells: the layout's rows first and in its order, others after them.

    Args:
        cells: records of one experiment at one scale.
        layout: rows and columns to expect; a row without a cell is a marked gap.
        paper: table of the paper to put beside the measured values, where the scale is the paper's.
    """
    published = paper_layout(paper).paper if paper else {}
    rows = rows_by_key(cells, layout.rows, method_key, baseline_of=uncalibrated)
    for row in rows:
        row.harc = row.key[1] == "yes"
        row.reference = row.cell.merge in REFERENCES if row.cell else row.key[0] == "Individual"
        row.paper = published.get(row.key, {})
    table = Table(KEYS, [*accuracy_columns(cells, layout), *MEASURES], rows, paper=paper)
    fill(table, layout.domains)
    return table


def setting_table(
    cells: Sequence[CellRecord],
    keys: Sequence[Column],
    expected: Sequence[tuple[str, ...]],
    key_of: Callable[[CellRecord], tuple[str, ...]],
    *,
    baseline_of: Callable[[tuple[str, ...]], tuple[str, ...] | None],
) -> Table:
    """The table of an experiment that varies a setting: a row a key, the columns that its cells measured.

    Args:
        cells: records of one experiment at one scale.
        keys: the key columns.
        expected: keys of the rows, in order; one without a cell is a marked gap.
        key_of: a cell's key; it must not need more of a record than a failed cell's has.
        baseline_of: key of the row that a row is compared with, or None.
    """
    layout = cells_layout(cells)
    rows = rows_by_key(cells, expected, key_of, baseline_of=baseline_of)
    for row in rows:
        row.harc = bool(row.cell and row.cell.calibrated)
        row.reference = bool(row.cell and row.cell.merge in REFERENCES)
        row.label = ", ".join(row.key)
    table = Table(list(keys), [*accuracy_columns(cells, layout), *MEASURES], rows)
    fill(table, layout.domains)
    return table


def accuracy_columns(cells: Sequence[CellRecord], layout: Layout) -> list[Column]:
    """The layout's benchmarks and means as columns; none where nothing was measured."""
    return [_column(name, layout, cells) for name in layout.columns] if layout.domains else []


def _column(name: str, layout: Layout, cells: Sequence[CellRecord]) -> Column:
    measured = [cell.tasks[name].task for cell in cells if name in cell.tasks]
    if name.endswith("_avg"):
        domain = name.removesuffix("_avg")
        label, short = f"{domain.capitalize()} avg", domain.capitalize()
        note = "mean"
    else:
        label, short = _LABELS.get(name, (name, name))
        note = measured[0] if measured else "mean" if name == "overall" else ""
    return Column(name, label, short, note=note, unit="%", best="max")
