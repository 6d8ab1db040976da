"""`plan=true`: the graph as one page to decide by: what would be made, on what, in what time, and what it takes."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.chain.preflight import check
from pipelines.config import Config
from pipelines.console import default_console, duration
from pipelines.engines import open_engine
from pipelines.explain import explain
from pipelines.graph.graph import Graph, Task
from pipelines.graph.schedule import remaining_paths, simulate
from pipelines.graph.seconds import ESTIMATED
from pipelines.graph.unite import unite
from pipelines.runner.resources import Resources

LINES = 60  # a longer graph has a line for each kind of stage


def print_plan(configs: Sequence[Config]) -> None:
    """Prints the plan of cells; makes nothing.

    Raises:
        Exception: what composing one of the cells raised, after the page.
    """
    machine = open_engine(configs[0].engine).machine()
    graph = unite(configs, machine)
    console = default_console()
    if graph.tasks:
        lacking = {task.key for task in graph.missing if task.resources.lacking(machine)}
        console.print(_by_task(graph, machine, lacking) if len(graph.tasks) <= LINES else _by_kind(graph, machine))
        _print_totals(console, graph, machine)
    _print_rows(console, graph)
    _print_trouble(console, graph, machine)
    for row in graph.rows:
        if row.error is not None:
            raise row.error


def _table(*left: str) -> Table:
    table = Table(expand=False)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in ("rows", "takes", "time", "memory", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _by_task(graph: Graph, machine: Resources, lacking: set[str]) -> Table:
    table = _table("stage", "state")
    order = list(dict.fromkeys(task.stage for task in graph.tasks.values()))
    for task in sorted(graph.tasks.values(), key=lambda task: order.index(task.stage)):
        state = "[green]there[/]" if task.there else "[red]doesn't fit[/]" if task.key in lacking else "would run"
        takes = task.resources.on(machine)
        where = str(task.node.path(graph.outputs).relative_to(graph.outputs))
        cells = (str(len(task.rows)), takes.words, _time(task), _memory(takes), _gb(task.disk_gb))
        table.add_row(where, state, *cells, style="dim" if task.there else None)
    return table


def _by_kind(graph: Graph, machine: Resources) -> Table:
    kinds: dict[tuple[str, str], list[Task]] = {}
    for task in graph.tasks.values():
        kinds.setdefault((task.stage, task.resources.on(machine).words), []).append(task)
    table = _table("stage", "there", "would run")
    for (stage, takes), tasks in kinds.items():
        missing = [task for task in tasks if not task.there]
        rows = {row for task in tasks for row in task.rows}
        most = max((task.resources.on(machine) for task in tasks), key=_all_memory)
        table.add_row(
            stage, str(len(tasks) - len(missing)), str(len(missing)), str(len(rows)), f"each {takes}",
            _times(missing), _memory(most), _gb(sum(task.disk_gb for task in missing)),
        )  # fmt: skip
    return table


def _print_totals(console: Console, graph: Graph, machine: Resources) -> None:
    missing = graph.missing
    rows = [row for row in graph.rows if row.keys]
    console.print(
        f"{len(graph.tasks)} stages for {len(rows)} row{'s' * (len(rows) != 1)}: "
        f"{len(graph.tasks) - len(missing)} there, {len(missing)} would run."
    )
    if not missing:
        return
    takes = {task.key: task.resources.on(machine) for task in missing}
    cores = sum(takes[task.key].cores * task.seconds.value for task in missing) / 3600
    gpus = sum(takes[task.key].gpus * task.seconds.value for task in missing) / 3600
    hours = [*([f"[bold]{gpus:,.1f} GPU hours[/]"] if gpus else []), f"{cores:,.1f} core hours"]
    longest = max(remaining_paths(graph, {}).values())
    console.print(
        f"[bold]About {duration(simulate(graph, machine))}[/] on {machine.words} with {machine.memory_gb:.0f} GB; "
        f"no less than {duration(longest)} on any number (the longest chain). {' and '.join(hours)}."
    )
    most = max(takes.values(), key=_all_memory)
    console.print(
        f"Memory: up to {_memory(most)} for one stage. Disk: up to {_gb(sum(task.disk_gb for task in missing))}."
    )
    guessed = [task for task in missing if task.seconds.source == ESTIMATED]
    if guessed:
        share = sum(task.seconds.value for task in guessed) / sum(task.seconds.value for task in missing)
        console.print(
            f"~ estimated from operation counts and typical rates, good to a factor of two or three "
            f"({100 * share:.0f} % of the time); others are times of like stages that were made here.",
            style="dim",
        )
    if not machine.gpus and any(task.resources.gpus for task in missing) and longest > 24 * 3600:
        console.print(
            "Without a GPU. For a machine with some: engine.gpus=8 engine.gpu_memory_gb=80 engine.cores=64 "
            "engine.memory_gb=1000 plan=true"
        )


def _print_rows(console: Console, graph: Graph) -> None:
    rows = [row for row in graph.rows if row.left_out is None]
    if len(graph.rows) > LINES:
        console.print(f"{len(rows)} rows; {len(graph.rows) - len(rows)} combinations are none.")
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
    try:
        failing = check(graph, machine)
    except OSError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return
    reasons: dict[str, set[int]] = {}
    for key, reason in failing.items():
        reasons.setdefault(explain(reason), set()).update(graph.tasks[key].rows)
    for text, rows in reasons.items():
        console.print(f"[red]{len(rows)} of the rows would fail at once: {escape(text)}[/]")


def _all_memory(takes: Resources) -> float:
    return takes.memory_gb + takes.gpus * takes.gpu_memory_gb


def _memory(takes: Resources) -> str:
    """On the host, and on each GPU."""
    host = _gb(takes.memory_gb)
    return f"{host} + {takes.gpus} × {_gb(takes.gpu_memory_gb)}" if takes.gpus else host


def _time(task: Task) -> str:
    return f"{'~ ' * (task.seconds.source == ESTIMATED)}{duration(task.seconds.value)}"


def _times(tasks: Sequence[Task]) -> str:
    """The sum over tasks."""
    if not tasks:
        return ""
    mark = "~ " * any(task.seconds.source == ESTIMATED for task in tasks)
    return f"{mark}{duration(sum(task.seconds.value for task in tasks))}"


def _gb(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.1f} TB"
    return f"{value:.1f} GB" if value >= 0.1 else "< 0.1 GB"
