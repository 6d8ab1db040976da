"""The table of a rehearsal: what each kind of stage took, beside what was planned for it."""

from rich.table import Table

from pipelines.console import default_console, duration
from pipelines.graph.seconds import StageRate
from pipelines.rehearsal.rates import Rehearsal

_COLUMNS = ("made", "time", "planned", "of that work", "memory", "planned", "disk", "planned")


def print_rehearsal(rehearsal: Rehearsal) -> None:
    """Prints the table, and what it is good for."""
    table = Table("stage", title=f"Rehearsal of {rehearsal.scale} with {rehearsal.layers} layers on {rehearsal.device}")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for rate in rehearsal.rates:
        table.add_row(rate.kind, *_cells(rate))
    console = default_console()
    console.print(table)
    console.print(
        "Each figure is a median over the stages of its kind, of memory the least. "
        f"`scale={rehearsal.scale} plan=true` on a {rehearsal.device} goes by these times."
    )


def _cells(rate: StageRate) -> list[str]:
    return [
        str(rate.made),
        duration(rate.overhead + rate.work),
        duration(rate.planned_seconds),
        duration(rate.work),
        *(f"{value:.1f} GB" for value in (rate.memory_gb, rate.planned_memory_gb)),
        *(f"{value:.2f} GB" for value in (rate.disk_gb, rate.planned_disk_gb)),
    ]
