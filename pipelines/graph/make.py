"""Makes what is missing of a graph, and reads from its stages what each cell measured."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from pipelines.chain.cell import cell_of
from pipelines.chain.preflight import check, lacking_disk
from pipelines.chain.run import record_of, unmeasured
from pipelines.config import Config
from pipelines.console import duration
from pipelines.engines.engine import open_engine
from pipelines.engines.unit import FAILED, QUEUED, SKIPPED, Result, read_result
from pipelines.explain import explain
from pipelines.graph.graph import Graph, Task
from pipelines.graph.progress import shown
from pipelines.graph.schedule import simulate
from pipelines.graph.unite import unite
from pipelines.record import CellRecord
from pipelines.rehearsal.page import print_rehearsal
from pipelines.rehearsal.rates import note_rehearsal
from pipelines.runner.make import Runner
from pipelines.runner.resources import Resources

log = logging.getLogger(__name__)


def make(configs: Sequence[Config], work: Path) -> "Making":
    """Makes the stages of all cells, each once, by the engine that the first of them names.

    A stage whose check fails, and one that fails, cost the rows behind them. Stages that only rows need which are lost
    before the start are not made.

    Args:
        configs: of the cells; they share an outputs folder.
        work: folder for the engine's own files, the logs of stages among them.

    With `report` none is made: what is missing has as result what came of the last attempt at it.

    Raises:
        OSError: too little disk where outputs go.
    """
    if configs[0].report:
        whole = unite(configs, Resources())
        return Making(whole, {}, {task.key: last_attempt(task, whole.outputs) for task in whole.missing})
    engine = open_engine(configs[0].engine)
    machine = engine.machine()
    whole = unite(configs, machine)
    failing = check(whole, machine)
    if full := lacking_disk(whole, machine):
        raise OSError(full)
    lost = {row for key in failing for row in whole.tasks[key].rows}
    for number in sorted(lost):
        row = whole.rows[number]
        log.error("%s: %s", row.name, next(explain(failing[key]) for key in row.keys if key in failing))
    graph = whole.without({key for key, task in whole.tasks.items() if lost.issuperset(task.rows)})
    _announce(graph, machine)
    with shown(graph, machine) as progress:
        results = engine.run(graph, work, progress)
    if configs[0].rehearse and (rehearsal := note_rehearsal(whole, machine)) is not None:
        print_rehearsal(rehearsal)
    return Making(whole, failing, results)


def last_attempt(task: Task, outputs: Path) -> Result:
    """Why a task has not been made: as the last run that tried says, among those that left their files in outputs."""
    tried = [(path.stat().st_mtime, path) for path in outputs.glob(f"hydra/*/*/stages/results/{task.key}.json")]
    if tried:
        found = read_result(max(tried)[1])
        if found.status == FAILED:
            printed = max(tried)[1].parent.parent / "logs" / f"{task.name}.log"
            return dataclasses.replace(found, log=str(printed))
    return Result(task.key, SKIPPED, error="not made yet (report=true makes no stage)")


def _announce(graph: Graph, machine: Resources) -> None:
    missing = len(graph.missing)
    if not missing:
        log.info("all %d stages are there", len(graph.tasks))
        return
    log.info(
        "%d stages for %d rows, %d of them there; the rest takes about %s on %s",
        len(graph.tasks), len([row for row in graph.rows if row.keys]), len(graph.tasks) - missing,
        duration(simulate(graph, machine)), machine.words,
    )  # fmt: skip


class Making:
    """What came of a graph.

    Attributes: graph; failing (key -> why the stage was not tried); results (key -> what came of those that were).
    """

    def __init__(self, graph: Graph, failing: dict[str, Exception], results: dict[str, Result]):
        self.graph, self.failing, self.results = graph, failing, results
        self._runner = Runner(graph.outputs)
        self._told: set[str] = set()

    @property
    def queued(self) -> bool:
        """Whether stages were left to a queue, which also makes the report."""
        return any(result.status == QUEUED for result in self.results.values())

    def error(self, row: int) -> Exception | None:
        """Why a row has no numbers: what composing it raised, or the first of its stages that failed."""
        one = self.graph.rows[row]
        if one.error is not None:
            return one.error
        checks = [self.failing[key] for key in one.keys if key in self.failing]
        if checks:
            return checks[0]
        for key in one.keys:
            result = self.results.get(key)
            if result is not None and result.error is not None:
                task = self.graph.tasks[key]
                printed = f" (what it printed: {result.log})" if result.log else ""
                return StageError(f"{task.stage} {task.label}: {result.error}{printed}")
        return None

    def record(self, row: int, overrides: Sequence[str] = ()) -> CellRecord:
        """The record of a row. overrides: its job's.

        Of rows that share a stage, the first one that asks is told that this run made it.
        """
        one = self.graph.rows[row]
        if one.left_out is not None:
            return unmeasured(one.config, "excluded", one.left_out, overrides)
        if (error := self.error(row)) is not None:
            return unmeasured(one.config, "failed", explain(error), overrides)
        cell = cell_of(one.config)
        made = {}
        for node in cell.nodes():
            new = node.key in self.results and node.key not in self._told
            self._told.add(node.key)
            made[node.path(self.graph.outputs)] = dataclasses.replace(self._runner.read(node), made=new)
        return record_of(cell, made, self.graph.outputs, overrides)


class StageError(RuntimeError):
    """A stage of a cell failed; the message names it, the reason, and where what it printed is."""
