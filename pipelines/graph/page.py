"""`plan=true`: the graph as one page to decide by: what would be made, on what, in what time, and what it takes."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harc.memory import SHARE
from pipelines.chain.preflight import check, lacking_disk
from pipelines.config import Config
from pipelines.console import default_console, duration
from pipelines.engines.engine import open_engine
from pipelines.explain import explain
from pipelines.graph.graph import Graph, Task
from pipelines.graph.schedule import peak_disk_gb, remaining_paths, simulate
from pipelines.graph.seconds import ESTIMATED, MEASURED, REHEARSED, Clock, kind_of
from pipelines.graph.unite import unite
from pipelines.runner.resources import Resources

LINES = 20  # a longer graph has a line for each kind of stage, and rows are counted
A_DAY = 24 * 3600
SOURCES = {
    ESTIMATED: "~ from operation counts and typical rates, good to a factor of two or three",
    REHEARSED: "≈ from operation counts and the rates of a rehearsal here",
    MEASURED: "as like stages took that were made here",
}
MARKS = {ESTIMATED: "~ ", REHEARSED: "≈ ", MEASURED: ""}
# Machines to rent, where this one has no GPU: GPUs of 80 GB, cores, gigabytes of memory.
RENTED = ((1, 16, 200), (4, 48, 500), (8, 96, 1000))


def print_plan(configs: Sequence[Config]) -> None:
    """Prints the plan of cells; makes nothing.

    Raises:
        Exception: what composing one of the cells raised, after the page.
    """
    machine = open_engine(configs[0].engine).machine()
    graph = unite(configs, machine)
    console = default_console()
    if graph.tasks:
        _print_title(console, configs, graph)
        lacking = {task.key for task in graph.missing if task.resources.lacking(machine)}
        by_task = len(graph.tasks) <= LINES
        console.print(_by_task(graph, machine, lacking) if by_task else _by_kind(graph, machine, lacking))
        _print_totals(console, graph, machine)
        long = graph.missing and max(remaining_paths(graph, {}).values()) > A_DAY
        if long and not machine.gpus and any(task.resources.gpus for task in graph.missing):
            _print_rented(console, configs, graph)
    _print_rows(console, graph)
    _print_trouble(console, graph, machine)
    for row in graph.rows:
        if row.error is not None:
            raise row.error


def _print_title(console: Console, configs: Sequence[Config], graph: Graph) -> None:
    rows = [row for row in graph.rows if row.keys]
    missing = len(graph.missing)
    names = list(dict.fromkeys(config.experiment.title or config.experiment.name for config in configs))
    title = f"{names[0] if len(names) == 1 else f'{len(names)} experiments'} at scale {configs[0].scale.name}"
    console.print(
        f"[bold]{escape(title)}[/]: {len(graph.tasks)} stages for {len(rows)} row{'s' * (len(rows) != 1)}: "
        f"{len(graph.tasks) - missing} there, {missing} would run."
    )


def _table(*left: str) -> Table:
    table = Table(expand=False)
    for column in left:
        table.add_column(column, overflow="fold")
    return table


def _columns(table: Table, *right: str) -> Table:
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _by_task(graph: Graph, machine: Resources, lacking: set[str]) -> Table:
    table = _columns(_table("stage", "state"), "rows", "takes", "time", "memory", "disk")
    order = list(dict.fromkeys(task.stage for task in graph.tasks.values()))
    for task in sorted(graph.tasks.values(), key=lambda task: order.index(task.stage)):
        state = "[green]there[/]" if task.there else "[red]doesn't fit[/]" if task.key in lacking else "would run"
        takes = task.resources.on(machine)
        where = str(task.node.path(graph.outputs).relative_to(graph.outputs))
        cells = (str(len(task.rows)), takes.words, _time(task), _memory(takes), _gb(task.disk_gb))
        table.add_row(where, state, *cells, style="dim" if task.there else None)
    return table


def _by_kind(graph: Graph, machine: Resources, lacking: set[str]) -> Table:
    """A line for each kind of stage: what is there, and of what is missing how long, on what, and how much."""
    kinds: dict[tuple[str, str], list[Task]] = {}
    for task in graph.tasks.values():
        kinds.setdefault((kind_of(task.node), task.resources.on(machine).words), []).append(task)
    order = list(dict.fromkeys(task.stage for task in graph.tasks.values()))
    columns = ("to make", "rows", "each takes", "time each", "in all", "memory each", "disk in all")
    table = _columns(Table(expand=False), "stage", *columns)
    table.columns[0].justify = "left"
    for (kind, takes), tasks in sorted(kinds.items(), key=lambda one: order.index(one[1][0].stage)):
        missing = [task for task in tasks if not task.there]
        rows = {row for task in tasks for row in task.rows}
        most = _memory(max((task.resources.on(machine) for task in tasks), key=_all_memory))
        unfit = any(task.key in lacking for task in missing)
        table.add_row(
            kind, f"{len(missing)} of {len(tasks)}", str(len(rows)), takes, _each(missing), _times(missing),
            f"[red]{most}: no room[/]" if unfit else most, _gb(sum(task.disk_gb for task in missing)),
            style=None if missing else "dim",
        )  # fmt: skip
    return table


def _print_totals(console: Console, graph: Graph, machine: Resources) -> None:
    say = partial(console.print, soft_wrap=True)
    missing = graph.missing
    if not missing:
        return
    takes = {task.key: task.resources.on(machine) for task in missing}
    spent = {task.key: takes[task.key].nodes * task.seconds.value / 3600 for task in missing}
    cores = sum(takes[key].cores * hours for key, hours in spent.items())
    gpus = sum(takes[key].gpus * hours for key, hours in spent.items())
    hours = [*([f"[bold]{gpus:,.1f} GPU hours[/]"] if gpus else []), f"{cores:,.1f} core hours"]
    longest = max(remaining_paths(graph, {}).values())
    say(
        f"[bold]About {duration(simulate(graph, machine))}[/] on {machine.words} with {machine.memory_gb:.0f} GB; "
        f"no less than {duration(longest)} on any number (the longest chain). {' and '.join(hours)}."
    )
    most = max(takes.values(), key=_all_memory)
    left, peak = sum(task.disk_gb for task in missing), peak_disk_gb(graph, machine)
    say(f"Memory: up to {_memory(most)} for one stage. Disk: {_gb(left)} stay, {_gb(peak)} at the peak.")
    _print_mapped(console, missing, takes, machine)
    whole = sum(task.seconds.value for task in missing)
    for source, words in SOURCES.items():
        share = sum(task.seconds.value for task in missing if task.seconds.source == source) / whole
        if share:
            say(f"Time: {100 * share:.0f} % {words}.", style="dim")


def _print_rented(console: Console, configs: Sequence[Config], graph: Graph) -> None:
    """The same graph on machines with GPUs, each of which trains in as many processes as it has of them."""
    table = _columns(_table("machine"), "wall time", "GPU hours", "GPU memory", "fits")
    for gpus, cores, memory in RENTED:
        machine = Resources(cores, gpus, memory, 80)
        launch = dataclasses.replace(configs[0].launch, processes=gpus)
        there = unite([dataclasses.replace(config, launch=launch) for config in configs], machine)
        seconds = simulate(there, machine)
        lacking = dict.fromkeys(task.stage for task in there.missing if task.resources.lacking(machine))
        most = max(task.resources.on(machine).gpu_memory_gb for task in there.missing)
        table.add_row(
            f"{gpus} × 80 GB GPU, {cores} cores, {memory} GB", f"~ {duration(seconds)}",
            f"{gpus * seconds / 3600:,.0f}", _gb(most), f"[red]not {', '.join(lacking)}[/]" if lacking else "yes",
        )  # fmt: skip
    console.print(table)
    console.print(
        "This machine has no GPU. engine.gpus=8 engine.gpu_memory_gb=80 engine.cores=96 engine.memory_gb=1000 "
        "launch.processes=8 plan=true shows another's page.",
        style="dim",
    )


def _print_mapped(
    console: Console, missing: Sequence[Task], takes: Mapping[str, Resources], machine: Resources
) -> None:
    """What the memory there is costs in time."""
    mapped = [task for task in missing if takes[task.key].mapped_gb]
    if not mapped:
        return
    clock = Clock(Path(), machine)
    hours = sum(clock.mapping(takes[task.key]) for task in mapped) / 3600
    enough = max(takes[task.key].memory_gb + takes[task.key].mapped_gb for task in mapped) / SHARE
    console.print(
        f"One stage gets {100 * SHARE:.0f} % of the memory. Hidden states beyond it are in mapped files on disk in "
        f"{len(mapped)} stages ({', '.join(dict.fromkeys(task.stage for task in mapped))}): about {hours:.1f} hours of "
        f"reading and writing in all, none with {enough:.0f} GB."
    )


def _print_rows(console: Console, graph: Graph) -> None:
    rows = [row for row in graph.rows if row.left_out is None]
    if len(graph.tasks) > LINES:
        names = ", ".join(escape(row.name) for row in rows[:LINES]) + (" …" if len(rows) > LINES else "")
        console.print(f"{len(rows)} rows: {names}.")
        reasons = Counter(row.left_out for row in graph.rows if row.left_out is not None)
        for reason, count in reasons.items():
            console.print(f"{count} left out: {escape(reason)}", style="dim")
        for row in graph.rows:
            if row.error is not None:
                console.print(f"[red]{escape(row.name)}: {escape(explain(row.error))}[/]")
        return
    for row in graph.rows:
        if row.left_out is not None:
            console.print(f"{escape(row.name)}: {escape(row.left_out)}", style="dim")
        elif row.error is not None:
            console.print(f"[red]{escape(row.name)}: {escape(explain(row.error))}[/]")
        else:
            console.print(escape(row.name))


def _print_trouble(console: Console, graph: Graph, machine: Resources) -> None:
    """What would fail of the checks before a run, each reason once."""
    if full := lacking_disk(graph, machine):
        console.print(f"[red]{escape(full)}[/]", soft_wrap=True)
    reasons: dict[str, tuple[set[int], list[str]]] = {}
    for key, reason in check(graph, machine).items():
        task = graph.tasks[key]
        rows, labels = reasons.setdefault(explain(reason).replace(task.label, "{}"), (set(), []))
        rows.update(task.rows)
        labels.append(task.label)
    for text, (rows, labels) in reasons.items():
        said = text.replace("{}", ", ".join(dict.fromkeys(labels)))
        console.print(f"[red]{len(rows)} of the rows would fail at once: {escape(said)}[/]", soft_wrap=True)


def _all_memory(takes: Resources) -> float:
    return takes.memory_gb + takes.gpus * takes.gpu_memory_gb


def _memory(takes: Resources) -> str:
    """On the host, and on each GPU."""
    host = _gb(takes.memory_gb) + (f" + {takes.mapped_gb:.0f} mapped" if takes.mapped_gb else "")
    return f"{host} + {takes.gpus} × {_gb(takes.gpu_memory_gb)}" if takes.gpus else host


def _time(task: Task) -> str:
    return f"{MARKS[task.seconds.source]}{duration(task.seconds.value)}"


def _mark(tasks: Sequence[Task]) -> str:
    """That of the least certain."""
    return next(mark for source, mark in MARKS.items() if any(task.seconds.source == source for task in tasks))


def _each(tasks: Sequence[Task]) -> str:
    """From the shortest to the longest, where they differ."""
    if not tasks:
        return ""
    least, most = (duration(of(task.seconds.value for task in tasks)) for of in (min, max))
    if least.count(" ") == most.count(" ") == 1 and least.split()[1] == most.split()[1]:
        least = least.split()[0] if least != most else least
    return _mark(tasks) + (least if least == most else f"{least} … {most}")


def _times(tasks: Sequence[Task]) -> str:
    """The sum over tasks."""
    return _mark(tasks) + duration(sum(task.seconds.value for task in tasks)) if tasks else ""


def _gb(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.1f} TB"
    return f"{value:.1f} GB" if value >= 0.1 else "< 0.1 GB"
