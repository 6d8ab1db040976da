"""How far a run is: stages done of all, what runs now, and the time left."""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.console import default_console, duration
from pipelines.engines.unit import FAILED, MADE, Result
from pipelines.graph.graph import Graph, Task
from pipelines.graph.schedule import simulate
from pipelines.runner.resources import Resources

log = logging.getLogger(__name__)


class Tally:
    """Counts what an engine reports, and says it in a log line for every stage that ends.

    Time left is that of the schedule still to come, each stage's estimate corrected by the ratio of measured to
    estimated time of its like in this run.
    """

    def __init__(self, graph: Graph, machine: Resources, clock: Callable[[], float] = time.monotonic):
        self.graph, self.machine, self.clock = graph, machine, clock
        self.running: dict[str, float] = {}
        self.ended: dict[str, Result] = {}
        self._ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @property
    def all(self) -> int:
        """Stages of the graph."""
        return len(self.graph.tasks)

    @property
    def done(self) -> int:
        """Stages that stand."""
        there = len(self.graph.tasks) - len(self.graph.missing)
        return there + sum(result.status == MADE for result in self.ended.values())

    def started(self, task: Task) -> None:
        """See pipelines.engines.Progress."""
        self.running[task.key] = self.clock()

    def ended_task(self, task: Task, result: Result) -> None:
        """See pipelines.engines.Progress.ended."""
        began = self.running.pop(task.key, None)
        self.ended[task.key] = result
        if result.status == MADE and began is not None:
            self._ratios[task.stage].append((self.clock() - began, task.seconds.value))

    def expected(self, task: Task) -> float:
        """Seconds that the task should take, by what was measured so far."""
        like = self._ratios.get(task.stage) or [pair for pairs in self._ratios.values() for pair in pairs]
        measured, estimated = (sum(part) for part in zip(*like, strict=True)) if like else (1.0, 1.0)
        return task.seconds.value * measured / max(estimated, 1e-9)

    def seconds_left(self) -> float:
        """Until all that can still be made is made."""
        now = self.clock()
        missing = {task.key: task for task in self.graph.missing}
        seconds = {key: 0.0 if key in self.ended else self.expected(task) for key, task in missing.items()}
        running = {key: max(seconds[key] - (now - began), 1.0) for key, began in self.running.items()}
        return simulate(self.graph, self.machine, seconds, running)

    def line(self) -> str:
        """How far the run is, in a line."""
        *others, _ = self.running or [""]
        beside = "".join(f", beside {self.graph.tasks[key].stage} {self.graph.tasks[key].label}" for key in others)
        return f"{self.done} of {self.all} stages done, about {duration(self.seconds_left())} left{beside}"


class Shown:
    """Progress of an engine's run, as pipelines.engines.Progress: log lines, below them a live view in a terminal."""

    def __init__(self, tally: Tally):
        self.tally = tally

    def started(self, task: Task) -> None:
        """Counts it, and says how far the run is."""
        self.tally.started(task)
        log.info("%s %s begins: %s", task.stage, task.label, self.tally.line())

    def ended(self, task: Task, result: Result) -> None:
        """Counts it, and says so."""
        self.tally.ended_task(task, result)
        name = f"{task.stage} {task.label}"
        if result.status == MADE:
            log.info("%s: %.0f s", name, result.seconds)
        elif result.status == FAILED:
            log.error("%s failed: %s (what it printed: %s)", name, result.error, result.log)
        else:
            log.error("%s is left out: %s", name, result.error)

    def __rich__(self) -> Group:
        """The live view: a line for each stage that runs, a bar for all."""
        tally = self.tally
        table = Table.grid(padding=(0, 2))
        for key, began in list(tally.running.items()):
            task = tally.graph.tasks[key]
            took, expected = tally.clock() - began, tally.expected(task)
            table.add_row(
                ProgressBar(total=max(expected, 1), completed=min(took, expected), width=20),
                Text(f"{task.stage} {task.label}"),
                Text(f"{duration(took)} of about {duration(expected)}", style="dim"),
            )
        table.add_row(
            ProgressBar(total=tally.all, completed=tally.done, width=20),
            Text(f"{tally.done} of {tally.all} stages", style="bold"),
            Text(f"about {duration(tally.seconds_left())} left", style="bold"),
        )
        return Group(table)


@contextmanager
def shown(graph: Graph, machine: Resources) -> Iterator[Shown]:
    """Progress of a run, shown while it lasts."""
    progress = Shown(Tally(graph, machine))
    console = default_console()
    if not console.is_terminal:
        yield progress
        return
    with Live(progress, console=console, refresh_per_second=2, transient=True), _logging_above():
        yield progress


@contextmanager
def _logging_above() -> Iterator[None]:
    """Log lines through the standard output that the live view has put in place, so that they stand above it."""
    moved = []
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and handler.stream in (sys.__stdout__, sys.__stderr__):
            moved.append((handler, handler.setStream(sys.stdout)))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)
