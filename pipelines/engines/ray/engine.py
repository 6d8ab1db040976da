"""The engine of a Ray cluster: hands tasks to Ray in the schedule's order; Ray finds each a node with what it takes."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.engine import RayEngineConfig
from pipelines.engines.books import ATTEMPTS, Books
from pipelines.engines.local.engine import interruptible, own_machine
from pipelines.engines.unit import MADE, Progress, Result
from pipelines.graph.graph import Graph, Task
from pipelines.graph.schedule import Schedule
from pipelines.places import ROOT
from pipelines.runner.resources import Resources

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger(__name__)


class RayEngine:
    """See `pipelines.engines.engine.Engine`."""

    def __init__(self, config: RayEngineConfig):
        """Raises:
        ImportError: Ray is not installed; says how to install it.
        """
        if find_spec("ray") is None:
            raise ImportError("engine=ray needs Ray: pip install 'harc[ray]'")
        self.config = config

    def machine(self) -> Resources:
        """See `pipelines.engines.engine.Engine`: this machine, or the nodes of the cluster.

        Raises:
            ConnectionError: there is no cluster at `engine.address`.
            ValueError: nodes have GPUs, and `engine.gpu_memory_gb` does not say of what memory.
        """
        if self.config.address is None:
            return own_machine(self.config)
        self._connect()
        return machine_of(_nodes(), self.config)

    def run(self, graph: Graph, work: Path, progress: Progress) -> dict[str, Result]:
        """See `pipelines.engines.engine.Engine`. work: in a folder that all nodes see under this path."""
        if not graph.missing:
            return {}
        import ray

        machine = self.machine()
        with interruptible():
            try:
                self._connect()
                return _Run(machine, graph, work.resolve(), progress).to_the_end()
            finally:
                ray.shutdown()

    def _connect(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if ray.is_initialized():
            return
        settings: dict[str, Any] = {"address": self.config.address}
        if self.config.address is None:
            machine = own_machine(self.config)
            settings = {
                "address": "local", "num_cpus": machine.cores, "num_gpus": machine.gpus, "include_dashboard": False,
                "_memory": int(machine.memory_gb * 1e9), "object_store_memory": 100_000_000,
            }  # fmt: skip
        path = ":".join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        ray.init(
            **settings, runtime_env={"env_vars": variables}, log_to_driver=False, configure_logging=False,
            logging_level=logging.ERROR,
        )  # fmt: skip


class _Run:
    def __init__(self, machine: Resources, graph: Graph, work: Path, progress: Progress):
        import ray

        from pipelines.engines.ray.task import make_on_ray

        self.graph, self.machine, self.progress = graph, machine, progress
        self.schedule = Schedule(graph, machine)
        self.books = Books(graph, work, progress)
        self.make = ray.remote(make_on_ray)
        self.busy: dict[ObjectRef, Task] = {}

    def to_the_end(self) -> dict[str, Result]:
        import ray

        while not self.schedule.finished:
            while task := self.schedule.start_next():
                self.progress.started(task)
                self._give(task)
            for ref in ray.wait(list(self.busy), num_returns=1)[0]:
                self._collect(ref, self.busy.pop(ref))
        return self.books.results

    def _give(self, task: Task) -> None:
        books, takes = self.books, self.schedule.running[task.key]
        books.attempt(task)
        options = {"num_cpus": takes.cores, "num_gpus": takes.gpus, "memory": int(takes.memory_gb * 1e9)}
        ref = self.make.options(**options, max_retries=0, name=task.name).remote(
            str(Path.cwd()), str(books.units[task.key]), task.key, str(books.result_of(task)), str(books.log_of(task)),
            takes.cores,
        )  # fmt: skip
        self.busy[ref] = task

    def _collect(self, ref: "ObjectRef", task: Task) -> None:
        from ray import get
        from ray.exceptions import RayError, RayTaskError

        ending = None
        try:
            get(ref)
        except RayTaskError as error:
            ending = f"Ray could not do it: {error.cause!r}"
        except RayError as error:
            ending = f"its process died ({type(error).__name__})"
            if not self.books.result_of(task).exists() and self.books.again(task):
                log.warning("%s %s: %s; once more", task.stage, task.label, ending)
                self._give(task)
                return
            ending += f", {ATTEMPTS} times"
        done = self.books.result_of(task).exists()
        result = self.books.end(task) if done else self.books.die(task, ending or "it left no result")
        if result.status == MADE:
            self.schedule.end(task.key)
        else:
            self.schedule.fail(task.key, self.graph)


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def machine_of(nodes: list[dict[str, float]], config: RayEngineConfig) -> Resources:
    """The nodes of a cluster as so many alike: of those with most GPUs, what the smallest has.

    Args:
        nodes: what each has, as Ray counts it (CPU, GPU, memory in bytes).
        config: what is set here comes first.

    Raises:
        ValueError: they have GPUs, and the settings don't say of what memory.
    """
    most = max(node.get("GPU", 0) for node in nodes)
    alike = [node for node in nodes if node.get("GPU", 0) == most]
    gpus = int(most) if config.gpus is None else config.gpus
    if gpus and config.gpu_memory_gb is None:
        raise ValueError("engine.gpu_memory_gb is not set: the memory of a GPU of the cluster, which Ray does not tell")
    return Resources(
        cores=config.cores or int(min(node["CPU"] for node in alike)),
        gpus=gpus,
        memory_gb=config.memory_gb or min(node["memory"] for node in alike) / 1e9,
        gpu_memory_gb=config.gpu_memory_gb or 0.0 if gpus else 0.0,
        nodes=len(alike),
    )
