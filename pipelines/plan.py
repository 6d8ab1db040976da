"""`plan=true`: the chain of every cell: what is there, what would run, where it goes and what it needs."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pipelines.cell import describe, excluded
from pipelines.chain import cell_of
from pipelines.config import Config
from pipelines.console import default_console
from pipelines.estimates import estimate
from pipelines.stage import is_made


def print_plan(config: Config) -> None:
    """Prints one table for the cell; makes nothing."""
    console = default_console()
    reason = excluded(config)
    if reason is not None:
        console.print(f"[bold]{escape(describe(config))}[/]: {escape(reason)}")
        return
    outputs = Path(config.outputs)
    cell = cell_of(config)
    table = Table(title=escape(describe(config)), title_justify="left", title_style="bold", expand=False)
    for column in ("stage", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("memory", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("directory", overflow="fold")
    for node in cell.nodes():
        there = is_made(node, outputs)
        needs = estimate(node, config.scale.size, config.scale.dtype)
        state = "[green]there[/]" if there else "[yellow]would run[/]"
        table.add_row(node.stage, state, _gb(needs.memory_gb), _gb(needs.disk_gb), str(node.path(outputs)))
    console.print(table)


def _gb(value: float) -> str:
    return f"{value:.1f} GB" if value >= 0.1 else "< 0.1 GB"
