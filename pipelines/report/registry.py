"""Reports by name: a report is a function from a sweep's cells to a table, figures, findings and notes.

A further one is a module with one function under `@report("name")`, imported in REPORT_MODULES below; the folder, the
page, the formats and the terminal come for free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pipelines.report.style import Picture
from pipelines.report.table import Table

_EXPERIMENTS = (
    "table3", "table4", "table7", "fig1", "fig3a", "fig3b", "fig3c", "fig4a", "fig4b", "logit_shift", "mismatch",
    "grid",
)  # fmt: skip
REPORT_MODULES = ("pipelines.report.merging", *(f"pipelines.report.experiments.{name}" for name in _EXPERIMENTS))

HOLDS, LEANS, FAILS, OPEN = "holds", "in direction only", "does not hold", "undecided"


@dataclass(frozen=True)
class Finding:
    """A qualitative finding of the paper, the rule it is judged by here, the verdict, and the numbers behind it."""

    claim: str
    rule: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Fact:
    """One headline of the page: a big value, what it is, and a line that puts it in proportion."""

    label: str
    value: str
    note: str = ""


@dataclass
class Content:
    """What a report function returns; everything else is made from it.

    points: the plotted points, one a row, where these are not the table's rows: table.csv then holds them, and
    summary.csv the table. files: further files of the folder, name -> text.
    """

    table: Table
    pictures: list[Picture] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    points: Table | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """What a report is made of: one experiment's cells at one scale."""

    experiment: str
    title: str
    scale: str
    cells: Sequence[dict[str, Any]]


class ReportError(ValueError):
    """A report that cannot be made; one line says why."""


_REPORTS: dict[str, Callable[[Sweep], Content]] = {}


def report(*names: str) -> Callable[[Callable[[Sweep], Content]], Callable[[Sweep], Content]]:
    """Registers a report function under one or more names (those that `experiment.report` may give)."""

    def register(function: Callable[[Sweep], Content]) -> Callable[[Sweep], Content]:
        for name in names:
            _REPORTS[name] = function
        return function

    return register


def find_report(name: str) -> Callable[[Sweep], Content]:
    """The report function of that name.

    Raises:
        ReportError: there is none; the message lists those there are.
    """
    names = report_names()
    if name not in names:
        raise ReportError(f"no report {name!r}; experiment.report is one of {', '.join(names)}")
    return _REPORTS[name]


def report_names() -> list[str]:
    """All names of reports."""
    for module in REPORT_MODULES:
        import_module(module)
    return sorted(_REPORTS)
