"""Reports by name: those of experiments/ are found, and a module outside registers its own."""

import sys

import pytest

from pipelines.config import ExperimentConfig
from pipelines.report import ReportError, build_report, registry, report_names
from pipelines.report.registry import find_report, report
from tests.pipelines.report import records

PLUGIN = '''
from pipelines.report.registry import Content, report
from pipelines.report.tables.accuracy import accuracy_table, cells_layout


@report("mine")
def mine(sweep):
    """My own table."""
    return Content(accuracy_table(sweep.cells, cells_layout(sweep.cells)), notes=["made by a plugin"])
'''


@pytest.fixture
def reports(monkeypatch):
    """The registry as it is; what a test registers is forgotten after it."""
    report_names()
    monkeypatch.setattr(registry, "_REPORTS", dict(registry._REPORTS))


def test_every_experiment_of_the_paper_has_its_report(reports):
    assert set(records.everything()) | {"cells", "world", "targets"} == set(report_names())


def test_a_module_outside_registers_a_report_and_gets_its_folder(reports, tmp_path, monkeypatch):
    (tmp_path / "my_reports.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reports", raising=False)
    __import__("my_reports")
    cells = [records.record("mine", "wudi", 0.5, problems=5)]
    made = build_report(ExperimentConfig("mine", report="mine"), "tiny", cells, tmp_path)
    assert "made by a plugin" in (made.path / "table.md").read_text()
    assert {"table.csv", "table.tex", "report.html", "cells.jsonl", "findings.json"} <= set(made.files)


def test_a_name_that_is_taken_is_refused(reports):
    with pytest.raises(ReportError, match=r"report 'fig1' of .* is already one of pipelines\.report\.experiments"):
        report("fig1")(lambda sweep: find_report("cells")(sweep))
