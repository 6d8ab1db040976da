"""The table in the terminal at the end of a run, with where everything is. Fits 100 columns."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from pipelines.console import default_console
from pipelines.report.registry import FAILS, HOLDS
from pipelines.report.tables.table import Row, Table, signed

if TYPE_CHECKING:
    from pipelines.report.build import ReportResult


def print_report(result: "ReportResult", console: Console | None = None) -> None:
    """Prints the table, the findings, failed rows with their reasons, and the folder.

    Args:
        result: of build_report.
        console: where to; by default the terminal.
    """
    console = console or default_console()
    table = result.table
    console.print()
    console.print(_grid(table, result.title))
    if any(gain.clear for row in table.rows for gain in row.gain.values()):
        console.print(
            "* gain whose paired 95 % interval excludes zero. Bold: best merged model of a column.", style="dim"
        )
    for finding in result.findings:
        style = {HOLDS: "green", FAILS: "red"}.get(finding.verdict, "yellow")
        console.print(
            Text.assemble(("• ", style), finding.claim, " ", (finding.verdict, f"bold {style}"), ": ", finding.detail)
        )
    for row in result.failed:
        console.print(Text.assemble(("✗ ", "bold red"), (row.name, "bold"), " ", (row.gap, "red")))
    console.print(Text.assemble("\nReport: ", (_short(result.path / "report.html"), "bold")), soft_wrap=True)
    console.print(f"Beside it: {', '.join(name for name in result.files if name != 'report.html')}", style="dim")


def _grid(table: Table, title: str) -> Grid:
    grid = Grid(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    shown = [
        *table.accuracies,
        *(one for one in table.measures[:2] if any(one.name in row.values for row in table.rows)),
    ]
    gains = any(table.main in row.gain for row in table.rows)
    for column in table.keys:
        grid.add_column(column.short or column.label, no_wrap=True)
    for column in table.accuracies:
        grid.add_column(column.short or column.label, justify="right", no_wrap=True)
    if gains:
        grid.add_column("Gain", justify="right", no_wrap=True)
    for column in shown[len(table.accuracies) :]:
        grid.add_column(column.short or column.label, justify="right", no_wrap=True)
    best = {column.name: table.best(column) for column in shown}
    for i, row in enumerate(table.rows):
        cells: list[Text | str] = [
            Text(text if text != "no" else "·", "" if row.harc else "dim" if j else "")
            for j, text in enumerate(row.key)
        ]
        if row.gap:
            cells.append(Text(row.status, "bold red" if row in table.failed else "yellow"))
            grid.add_row(*cells)
        else:
            numbers = [
                Text(one.text(row.values.get(one.name), "·"), "bold" if i in best[one.name] else "") for one in shown
            ]
            if gains:
                numbers.insert(len(table.accuracies), _gain(row, table.main))
            grid.add_row(*cells, *numbers)
        if i + 1 < len(table.rows) and table.begins_group(i + 1):
            grid.add_section()
    return grid


def _gain(row: Row, column: str) -> Text:
    gain = row.gain.get(column)
    if gain is None:
        return Text("")
    style = ("green" if gain.value > 0 else "red") if gain.clear else "dim"
    return Text(f"{signed(gain.value)}{'*' if gain.clear else ' '}", style)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else str(path)
