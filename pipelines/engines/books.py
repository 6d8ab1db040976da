"""What an engine keeps of a run, whatever makes its tasks: their files, what came of them, who is told."""

from pathlib import Path

from pipelines.engines.unit import FAILED, MADE, SKIPPED, Progress, Result, read_result, write_units
from pipelines.graph.graph import Graph, Task

ATTEMPTS = 2  # at a task whose process dies


class Books:
    """The missing tasks of a graph, from their configurations to their results.

    Attributes: units (key -> configuration that the task is made from); results (key -> what came of it).
    """

    def __init__(self, graph: Graph, work: Path, progress: Progress):
        """Writes the configurations.

        Args:
            graph: its missing tasks are kept.
            work: absolute; gets cells/, results/ and logs/.
            progress: is told.
        """
        self.graph, self.work, self.progress = graph, work, progress
        self.units = write_units(graph, work / "cells")
        self.results: dict[str, Result] = {}
        self._attempts: dict[str, int] = {}
        for folder in ("results", "logs"):
            (work / folder).mkdir(parents=True, exist_ok=True)

    def result_of(self, task: Task) -> Path:
        """The file that a task's result goes to."""
        return self.work / "results" / f"{task.key}.json"

    def log_of(self, task: Task) -> Path:
        """The file that gets what a task prints."""
        return self.work / "logs" / f"{task.name}.log"

    def attempt(self, task: Task) -> None:
        """The task is about to be handed to a process."""
        self.result_of(task).unlink(missing_ok=True)
        self._attempts[task.key] = self._attempts.get(task.key, 0) + 1

    def again(self, task: Task) -> bool:
        """Whether a task whose process died is tried once more."""
        return self._attempts[task.key] < ATTEMPTS

    def end(self, task: Task) -> Result:
        """The task's process has written a result."""
        return self._end(task, read_result(self.result_of(task)))

    def die(self, task: Task, ending: str) -> Result:
        """The task is given up: its process ended without a result. ending: how, in words."""
        return self._end(task, Result(task.key, FAILED, error=ending))

    def _end(self, task: Task, result: Result) -> Result:
        result = Result(**{**vars(result), "log": str(self.log_of(task))})
        self._note(task, result)
        if result.status != MADE:
            behind = self.graph.behind([task.key])
            for one in self.graph.missing:
                if one.key in behind and one.key not in self.results:
                    error = f"needs {task.stage} {task.label}: {result.error}"
                    self._note(one, Result(one.key, SKIPPED, error=error))
        return result

    def _note(self, task: Task, result: Result) -> None:
        self.results[task.key] = result
        self.progress.ended(task, result)
