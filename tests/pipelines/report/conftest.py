"""Reports built once for the package's tests, and readers of what they wrote."""

import csv
import io
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from pipelines.config import ExperimentConfig
from pipelines.record import CellRecord
from pipelines.report import ReportResult, build_report
from tests.pipelines.report import records

HOSTILE = "RuntimeError: <script>alert('x')</script> & {50%} \\foo_bar | </td> $x^2$ ~ “quoted”\nsecond line"

Rows = tuple[list[str], list[dict[str, str]]]


@pytest.fixture(scope="package")
def table1() -> ExperimentConfig:
    return ExperimentConfig("table1", report="table1", title="Merging methods without and with HARC")


@pytest.fixture(scope="package")
def cells() -> list[CellRecord]:
    """A complete table 1 at scale tiny; tests change copies of it only."""
    return records.table1_cells(problems=40, gain=0.04)


@pytest.fixture(scope="package")
def whole(table1, cells, tmp_path_factory) -> ReportResult:
    """The report of these cells."""
    return build_report(table1, "tiny", cells, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="package")
def gappy(table1, tmp_path_factory) -> ReportResult:
    """One cell failed with hostile text, one never made."""
    some = records.table1_cells(problems=20)
    some[4] = records.failed(some[4], HOSTILE)
    del some[7]
    return build_report(table1, "tiny", some, tmp_path_factory.mktemp("gappy"))


@pytest.fixture(params=["whole", "gappy"])
def either(request) -> ReportResult:
    """A report without gaps, and one with."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def rows_of() -> Callable[[str], Rows]:
    """Reads a CSV's text: its header and rows."""

    def read(text: str) -> Rows:
        reader = csv.DictReader(io.StringIO(text))
        rows = list(reader)
        return list(reader.fieldnames or []), rows

    return read


class Page(HTMLParser):
    """Collects what a page would fetch, and checks that its elements close."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "line", "rect", "path", "use", "hr", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action") or (name == "href" and not (value or "").startswith("#")):
                self.fetched.append((tag, name, value))
            if name == "style" and "url(" in (value or "") and "url(#" not in value:
                self.fetched.append((tag, name, value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, (self.open[-3:], tag)
            self.open.pop()


@pytest.fixture(scope="session")
def parsed() -> type[Page]:
    """Parses a page's text; what it would fetch and what stayed open can be asked of the result."""
    return Page
