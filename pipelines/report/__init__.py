"""Reports: from a sweep's cells to the folder that a reader opens.

    build_report(experiment, scale, cells, outputs)   makes outputs/reports/<experiment>-<scale>/
    print_report(result)                              shows its table in the terminal
    print_cell(cell, folder)                          shows a cell that ran alone

table.py says what a table is; formats.py, page.py and terminal.py write it; accuracy.py makes one from cells;
style.py and plots.py draw; registry.py holds the reports by name, one short module each (merging.py).
"""

from pipelines.report.build import ReportResult, build_report, heading
from pipelines.report.registry import ReportError, report_names
from pipelines.report.terminal import print_cell, print_report

__all__ = ["ReportError", "ReportResult", "build_report", "heading", "print_cell", "print_report", "report_names"]
