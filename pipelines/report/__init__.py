"""Reports: from a sweep's cells to the folder that a reader opens.

    build_report(experiment, scale, cells, outputs)   makes outputs/reports/<experiment>-<scale>/
    build_index(outputs, scale, experiments)          makes outputs/reports/paper-<scale>/, a page that links them
    print_report(result)                              shows its table in the terminal
    print_cell(cell, folder)                          shows a cell that ran alone

table.py says what a table is; formats.py, page.py and terminal.py write it; rows.py, measured.py and accuracy.py make
one from cells; style.py, plots.py, dots.py and lines.py draw; rules.py judges findings; registry.py holds the reports
by name: merging.py, and a short module each in experiments/.
"""

from pipelines.report.build import ReportResult, build_report, heading
from pipelines.report.index import build_index
from pipelines.report.registry import ReportError, report_names
from pipelines.report.terminal import print_cell, print_report

__all__ = [
    "ReportError",
    "ReportResult",
    "build_index",
    "build_report",
    "heading",
    "print_cell",
    "print_report",
    "report_names",
]
