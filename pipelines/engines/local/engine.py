"""The engine of one machine: hands tasks to worker processes, each with cores and GPUs that are its alone meanwhile."""

import logging
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harc.memory import installed_memory_gb
from pipelines.config.engine import LocalEngineConfig, StageEngineConfig
from pipelines.engines.books import ATTEMPTS, Books
from pipelines.engines.local.process import Worker
from pipelines.engines.unit import MADE, Progress, Result
from pipelines.graph.graph import Graph, Task
from pipelines.graph.schedule import Schedule
from pipelines.runner.resources import Resources

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between looks at workers that may have died silently


@dataclass
class _Running:
    task: Task
    worker: Worker
    cores: list[int]


class LocalEngine:
    """See `pipelines.engines.engine.Engine`."""

    def __init__(self, config: LocalEngineConfig):
        self.config = config

    def machine(self) -> Resources:
        """See `pipelines.engines.engine.Engine`. What the settings say, so that another machine can be planned for.

        Raises:
            ValueError: more GPUs than there are here, of unknown memory.
        """
        return own_machine(self.config)

    def run(self, graph: Graph, work: Path, progress: Progress) -> dict[str, Result]:
        """See `pipelines.engines.engine.Engine`. work: gets cells/, results/ and logs/.

        Raises:
            ValueError: the settings give more cores or GPUs than this process may use.
        """
        if not graph.missing:
            return {}
        cores = _some("cores", own_cores(), self.config.cores)
        gpus = _some("gpus", visible_gpus(), self.config.gpus)
        with interruptible():
            run = _Run(self.machine(), cores, gpus, graph, work.resolve(), progress)
            try:
                return run.to_the_end()
            finally:
                run.stop()


class _Run:
    def __init__(
        self, machine: Resources, cores: list[int], gpus: list[int], graph: Graph, work: Path, progress: Progress
    ):
        self.graph, self.progress = graph, progress
        self.schedule = Schedule(graph, machine)
        self.books = Books(graph, work, progress)
        self.output = work / "logs" / "workers.log"
        self.cores, self.gpus = cores, gpus
        self.most_workers = len(cores)
        self.idle: list[Worker] = []
        self.busy: dict[int, _Running] = {}

    def to_the_end(self) -> dict[str, Result]:
        while not self.schedule.finished:
            while task := self.schedule.start_next():
                self._start(task)
            readable, _, _ = select.select(list(self.busy), [], [], _LOOK_SECONDS)
            for descriptor in [one for one, run in self.busy.items() if one in readable or run.worker.dead]:
                self._collect(self.busy.pop(descriptor))
        return self.books.results

    def stop(self) -> None:
        for worker in [*self.idle, *(running.worker for running in self.busy.values())]:
            worker.stop()

    def _start(self, task: Task) -> None:
        takes = self.schedule.running[task.key]
        cores = [self.cores.pop(0) for _ in range(min(takes.cores, len(self.cores)))]
        gpus = tuple(self.gpus.pop(0) for _ in range(takes.gpus))
        self.progress.started(task)
        self._give(_Running(task, self._worker(gpus), cores))

    def _give(self, running: _Running) -> None:
        task, books = running.task, self.books
        books.attempt(task)
        self.busy[running.worker.replies] = running
        running.worker.give(books.units[task.key], task.key, books.result_of(task), books.log_of(task), running.cores)

    def _worker(self, gpus: tuple[int, ...]) -> Worker:
        """An idle worker that sees these GPUs, else a new one, in the place of an idle one if there are enough."""
        for worker in self.idle:
            if worker.gpus == gpus:
                self.idle.remove(worker)
                return worker
        if self.idle and len(self.idle) + len(self.busy) >= self.most_workers:
            self.idle.pop(0).stop()
        return Worker(gpus, self.output)

    def _collect(self, running: _Running) -> None:
        task, worker = running.task, running.worker
        if worker.replied() or self.books.result_of(task).exists():
            self._release(running)
            self._end(task, self.books.end(task))
            return
        ending = worker.ending
        worker.stop()
        if self.books.again(task):
            log.warning("%s %s: its process %s; once more", task.stage, task.label, ending)
            self._give(_Running(task, Worker(worker.gpus, self.output), running.cores))
            return
        self._release(running, alive=False)
        self._end(task, self.books.die(task, f"its process {ending}, {ATTEMPTS} times"))

    def _release(self, running: _Running, alive: bool = True) -> None:
        self.cores = sorted([*self.cores, *running.cores])
        self.gpus = sorted([*self.gpus, *running.worker.gpus])
        if not alive:
            return
        if running.worker.dead:
            running.worker.stop()
        else:
            self.idle.append(running.worker)

    def _end(self, task: Task, result: Result) -> None:
        if result.status == MADE:
            self.schedule.end(task.key)
        else:
            self.schedule.fail(task.key, self.graph)


def _some(key: str, there: list[int], asked: int | None) -> list[int]:
    if asked is not None and asked > len(there):
        raise ValueError(f"engine.{key}={asked}: this process may use {len(there)} (more can only be planned for)")
    return there if asked is None else there[:asked]


def own_machine(config: StageEngineConfig) -> Resources:
    """This machine, and what the settings say of it first.

    Raises:
        ValueError: more GPUs than there are here, of unknown memory.
    """
    seen = len(visible_gpus())
    gpus = seen if config.gpus is None else config.gpus
    if gpus > seen and config.gpu_memory_gb is None:
        raise ValueError(f"engine.gpus={gpus}: here are {seen}; set engine.gpu_memory_gb to plan for others")
    return Resources(
        config.cores or len(own_cores()),
        gpus,
        config.memory_gb or installed_memory_gb(),
        config.gpu_memory_gb or (gpu_memory_gb() if gpus else 0.0),
    )


def own_cores() -> list[int]:
    """The cores that this process may use; numbered from 0 where the system pins no process to cores."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def visible_gpus() -> list[int]:
    """The GPUs that this process sees, by CUDA's own numbers."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given and all(word.strip().isdigit() for word in given.split(",")):
        return [int(word) for word in given.split(",")]
    return list(range(torch.cuda.device_count()))


def gpu_memory_gb() -> float:
    """Memory of the smallest GPU, gigabytes."""
    import torch

    return min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / 1e9


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM ends a run as Ctrl-C does: workers first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
