"""What an engine is, and which of them the settings name."""

from pathlib import Path
from typing import Protocol

from pipelines.config.engine import LocalEngineConfig, RayEngineConfig, SlurmEngineConfig, StageEngineConfig
from pipelines.engines.unit import Progress, Result
from pipelines.graph.graph import Graph
from pipelines.runner.resources import Resources


class Engine(Protocol):
    """Makes tasks."""

    def machine(self) -> Resources:
        """All that tasks may use at once, for the plan and the check that every task fits."""

    def run(self, graph: Graph, work: Path, progress: Progress) -> dict[str, Result]:
        """Makes the missing tasks of the graph, each once.

        Args:
            graph: of the sweep; `graph.missing` is what is to be made.
            work: folder for this run's own files: configurations, results, logs.
            progress: is told of every task that starts and ends.

        Returns:
            The result of every missing task by key. A failure is a result, of the task and of those behind it; so is
            that it was left to a queue, which makes it after this call.

        Raises:
            KeyboardInterrupt: interrupted; nothing that it started is at work any more.
        """


def open_engine(config: StageEngineConfig) -> Engine:
    """The engine of these settings.

    Raises:
        ValueError: there is no such engine.
        ImportError: a package that it needs is not installed.
    """
    if isinstance(config, LocalEngineConfig):
        from pipelines.engines.local.engine import LocalEngine

        return LocalEngine(config)
    if isinstance(config, RayEngineConfig):
        from pipelines.engines.ray.engine import RayEngine

        return RayEngine(config)
    if isinstance(config, SlurmEngineConfig):
        from pipelines.engines.slurm.engine import SlurmEngine

        return SlurmEngine(config)
    raise ValueError(f"engine={config.kind}: no such engine; expected one of local, ray, slurm")
