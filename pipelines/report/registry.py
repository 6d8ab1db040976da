"""Reports by name: a report is a function from a sweep's cells to a table, figures, findings and notes.

A further one is a function under `@report("name")`: in a module of experiments/, where it is found, or in any module
that has been imported (a plugin). The folder, the page, the formats and the terminal come for free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules

from pipelines.record import CellRecord
from pipelines.report.figures.style import Picture
from pipelines.report.tables.table import Table

HOLDS, LEANS, FAILS, OPEN = "holds", "in direction only", "does not hold", "undecided"


@dataclass(frozen=True)
class Finding:
    """A finding, the paper's or beyond it, the rule it is judged by here, the verdict, and the numbers behind it."""

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
    summary.csv the table. evidence: what the table's gains are worth (tables/evidence.py), also as evidence.csv.
    files: further files of the folder, name -> text. findings_title: what the findings stand under.
    """

    table: Table
    pictures: list[Picture] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    points: Table | None = None
    evidence: Table | None = None
    files: dict[str, str] = field(default_factory=dict)
    findings_title: str = "The paper's findings, judged here"


@dataclass(frozen=True)
class Sweep:
    """What a report is made of: one experiment's cells at one scale."""

    experiment: str
    title: str
    scale: str
    cells: Sequence[CellRecord]


class ReportError(ValueError):
    """A report that cannot be made; one line says why."""


_REPORTS: dict[str, Callable[[Sweep], Content]] = {}


def report(*names: str) -> Callable[[Callable[[Sweep], Content]], Callable[[Sweep], Content]]:
    """Registers a report function under one or more names (those that `experiment.report` may give).

    Raises:
        ReportError: a name that another function has.
    """

    def register(function: Callable[[Sweep], Content]) -> Callable[[Sweep], Content]:
        for name in names:
            other = _REPORTS.get(name, function)
            if (other.__module__, other.__qualname__) != (function.__module__, function.__qualname__):
                raise ReportError(f"report {name!r} of {function.__module__} is already one of {other.__module__}")
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
    """All names of reports: those of experiments/, and those that imported modules registered."""
    from pipelines.report import experiments

    for module in iter_modules(experiments.__path__, f"{experiments.__name__}."):
        import_module(module.name)
    return sorted(_REPORTS)
