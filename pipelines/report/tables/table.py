"""What a report's table is: columns, rows in a fixed order, and per value its interval and its gain.

Every writer (CSV, Markdown, LaTeX, HTML, terminal) reads this one description, so that they cannot disagree. Accuracies
here are per cent, as the paper prints them; routing KL is in nats, run time in seconds, memory in GB.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.record import CellRecord
from pipelines.report.statistics import Terms


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    name: in the CSV. label: for people. short: for narrow places. note: what it was measured on (the task's name).
    kind: `accuracy` columns are the table proper, in the paper's order; `measure` columns follow them.
    best: `max`, `min` or None (no bold). digits: after the decimal point. significant: digits that count instead, for
    values of any magnitude (routing KL). interval: an `accuracy` column whose values have intervals over problems.
    """

    name: str
    label: str
    short: str = ""
    note: str = ""
    unit: str = ""
    kind: str = "accuracy"
    best: str | None = None
    digits: int = 2
    significant: int | None = None
    interval: bool = True

    def text(self, value: float | None, gap: str = "–") -> str:
        """The value as printed; `gap` where there is none."""
        if value is None or math.isnan(value):
            return gap
        if self.significant is None or value == 0:
            return f"{value:.{self.digits}f}"
        return f"{value:.{max(self.significant - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def signed(value: float, digits: int = 2) -> str:
    """A difference for people: with its sign, a minus that is as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Gain:
    """A difference from the baseline row with its paired 95 % interval, in the column's unit."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """The gain and its interval, for people."""
        return f"{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]"

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero: the only gains that are marked."""
        return self.low > 0 or self.high < 0


@dataclass
class Row:
    """One row. key: one text a key column. status: ok, failed, missing or excluded; why: the reason of a gap.

    harc: the row is a calibrated one. baseline: key of the row that it is compared with.
    reference: a bound (Individual, base model), never the best of a column.
    paper: the paper's value of a column, where the scale is the paper's. cell: the record it was made from.
    label: the row in words, where its key does not say it. draws: a column's bootstrap resamples; problems: the
    problems they were drawn from (rows are paired only where these are equal); terms: what each of them adds to the
    value.
    """

    key: tuple[str, ...]
    status: str = "missing"
    why: str = ""
    harc: bool = False
    baseline: tuple[str, ...] | None = None
    reference: bool = False
    values: dict[str, float] = field(default_factory=dict)
    ci95: dict[str, float] = field(default_factory=dict)
    gain: dict[str, Gain] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    cell: CellRecord | None = None
    label: str = ""
    draws: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    problems: dict[str, frozenset[Any]] = field(default_factory=dict, repr=False)
    terms: dict[str, Terms] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The row in words, e.g. `WUDI-Merging + HARC`."""
        if self.label:
            return self.label
        return f"{self.key[0]} + HARC" if self.harc else self.key[0]

    @property
    def gap(self) -> str:
        """What stands where the numbers would be; empty for a row that has them."""
        return "" if self.status == "ok" else f"{self.status}: {self.why}" if self.why else self.status


@dataclass
class Table:
    """A table of a report. keys: names of the key columns; main: the column that gains are judged by.

    paper: the paper's table it is compared with, or None. pooled: mean gain of all compared rows in the main column.
    """

    keys: list[Column]
    columns: list[Column]
    rows: list[Row]
    main: str = "overall"
    paper: str | None = None
    pooled: Gain | None = None

    @property
    def accuracies(self) -> list[Column]:
        """The columns of the table proper: those that the paper's table has."""
        return [column for column in self.columns if column.kind == "accuracy"]

    @property
    def measures(self) -> list[Column]:
        """The columns after them."""
        return [column for column in self.columns if column.kind != "accuracy"]

    @property
    def failed(self) -> list[Row]:
        """Rows that should have numbers and have none."""
        return [row for row in self.rows if row.status in ("failed", "missing")]

    def row(self, *key: str) -> Row | None:
        """The row of that key."""
        return next((row for row in self.rows if row.key == key), None)

    def baseline(self, row: Row) -> Row | None:
        """The row that a row is compared with: for a calibrated one, the same merge without calibration."""
        return self.row(*row.baseline) if row.baseline else None

    def begins_group(self, i: int) -> bool:
        """Whether row i begins a group: its first key is another than that of the row above (of several keys)."""
        return i == 0 or (len(self.keys) > 1 and self.rows[i].key[0] != self.rows[i - 1].key[0])

    def best(self, column: Column) -> set[int]:
        """Indices of the rows that hold the best printed value of a column, bounds left out."""
        if column.best is None:
            return set()
        values = {
            i: float(column.text(row.values[column.name]))
            for i, row in enumerate(self.rows)
            if column.name in row.values and not row.reference
        }
        if len(values) < 2:
            return set()
        best = (max if column.best == "max" else min)(values.values())
        return {i for i, value in values.items() if value == best}
