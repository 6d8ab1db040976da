"""Reports: from a sweep's cells to the folder that a reader opens.

    build_report(experiment, scale, cells, outputs)   makes outputs/reports/<experiment>-<scale>/
    build_pooled_report(experiment, scale, cells, …)  makes outputs/reports/<experiment>-<scale>-<n>seeds/, of n seeds
    build_index(outputs, scale, experiments)          makes outputs/reports/paper-<scale>/, a page that links them
    print_report(result)                              shows its table in the terminal

    tables/       from cells to rows, values, intervals and gains (table.py says what a table is)
    figures/      shapes of plots, and the one style they share
    experiments/  a table or figure of the paper each: its rows, its figure, its findings
    writers/      a table as CSV, Markdown, LaTeX, HTML, and in the terminal
    paper/        the paper's own numbers

build.py makes the folder, after check.py has seen that the cells belong together and sweep.py that they are all there;
pooling.py makes one cell of a cell's replicates;
registry.py finds a report by name; rules.py judges findings; settings.py is what experiments that vary one setting
share, notes.py what every page says; summary.py is what index.py reads of each report.
"""

from pipelines.report.build import ReportResult, build_pooled_report, build_report, heading
from pipelines.report.index import build_index
from pipelines.report.registry import ReportError, report_names
from pipelines.report.writers.terminal import print_report

__all__ = [
    "ReportError",
    "ReportResult",
    "build_index",
    "build_pooled_report",
    "build_report",
    "heading",
    "print_report",
    "report_names",
]
