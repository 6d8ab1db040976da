"""The engine of a SLURM cluster: the whole graph is queued at once, each job after those that it needs."""

import dataclasses
import logging
import math
import shlex
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.config.engine import SlurmEngineConfig
from pipelines.engines.books import ATTEMPTS, Books
from pipelines.engines.command import command
from pipelines.engines.local.engine import interruptible
from pipelines.engines.slurm.job import Job
from pipelines.engines.slurm.queue import cancel, nodes_of, states_of
from pipelines.engines.unit import QUEUED, Progress, Result
from pipelines.graph.graph import Graph, Task
from pipelines.graph.schedule import remaining_paths
from pipelines.places import ROOT
from pipelines.runner.resources import Resources

log = logging.getLogger(__name__)

_LATE = 3  # looks at a job that SLURM says is over, until a result that does not come is none


class SlurmEngine:
    """See `pipelines.engines.engine.Engine`."""

    def __init__(self, config: SlurmEngineConfig):
        """Raises:
        ImportError: submitit is not installed; says how to install it.
        """
        if find_spec("submitit") is None:
            raise ImportError("engine=slurm needs submitit: pip install 'harc[slurm]'")
        self.config = config

    def machine(self) -> Resources:
        """See `pipelines.engines.engine.Engine`: the nodes of the partition.

        Raises:
            ValueError: nodes have GPUs, and `engine.gpu_memory_gb` does not say of what memory.
            RuntimeError: SLURM does not answer, or no node is up.
        """
        config = self.config
        asked = (config.cores, config.gpus, config.memory_gb, config.nodes)
        known = Resources() if None not in asked else nodes_of(config.partition)
        found = Resources(
            cores=config.cores or known.cores,
            gpus=known.gpus if config.gpus is None else config.gpus,
            memory_gb=config.memory_gb or known.memory_gb,
            nodes=config.nodes or known.nodes,
        )
        if found.gpus and config.gpu_memory_gb is None:
            raise ValueError("engine.gpu_memory_gb is not set: the memory of a GPU, which SLURM does not tell")
        margin = min(config.memory_margin_gb, found.memory_gb / 2)
        return dataclasses.replace(
            found,
            memory_gb=found.memory_gb - margin,
            gpu_memory_gb=(config.gpu_memory_gb or 0.0) if found.gpus else 0.0,
        )

    def run(self, graph: Graph, work: Path, progress: Progress) -> dict[str, Result]:
        """See `pipelines.engines.engine.Engine`. work: in a folder that all nodes see under this path."""
        if not graph.missing:
            return {}
        run = _Run(self.config, self.machine(), graph, work.resolve(), progress)
        with interruptible():
            try:
                run.submit()
                return run.to_the_end() if self.config.wait else run.leave()
            except BaseException:
                cancel(list(run.jobs.values()))
                raise


class _Run:
    def __init__(self, config: SlurmEngineConfig, machine: Resources, graph: Graph, work: Path, progress: Progress):
        self.config, self.machine, self.graph, self.progress = config, machine, graph, progress
        self.books = Books(graph, work, progress)
        self.folder = work / "jobs"
        self.jobs: dict[str, str] = {}

    def submit(self) -> None:
        """Queues all tasks, those with the longest path behind them first: every one after those that it needs."""
        paths = remaining_paths(self.graph, {})
        for task in sorted(self.graph.missing, key=lambda task: -paths[task.key]):
            takes = task.resources.on(self.machine)
            self.books.attempt(task)
            result = self.books.result_of(task)
            made = Job(
                command(self.books.units[task.key], task.key, result), str(Path.cwd()), takes.cores,
                str(self.books.log_of(task)), str(result), ATTEMPTS,
            )  # fmt: skip
            after = [self.jobs[need] for need in task.needs if need in self.jobs]
            self.jobs[task.key] = self._submit(task.name, made, takes, f"afterok:{':'.join(after)}" if after else None)
        log.info(
            "%d jobs are queued: %s to %s", len(self.jobs), *(sorted(self.jobs.values(), key=int)[i] for i in (0, -1))
        )

    def _submit(self, name: str, job: Job, takes: Resources, after: str | None) -> str:
        from submitit import SlurmExecutor

        config = self.config
        executor = SlurmExecutor(folder=self.folder / name, python=f"{shlex.quote(sys.executable)} -P")
        more: dict[str, Any] = {"requeue": True, **config.sbatch}
        if after:
            more |= {"dependency": after, "kill-on-invalid-dep": "yes"}
        if takes.gpus:
            more["gpus-per-node"] = takes.gpus
        if takes.exclusive:
            more["exclusive"] = True
        chosen = {"partition": config.partition, "account": config.account}
        executor.update_parameters(
            job_name=name, time=math.ceil(60 * config.hours), nodes=takes.nodes, ntasks_per_node=1,
            cpus_per_task=takes.cores, mem=f"{math.ceil((takes.memory_gb + config.memory_margin_gb) * 1e9 / 2**20)}M",
            srun_args=["--nodes=1", "--ntasks=1", f"--cpus-per-task={takes.cores}"],
            setup=[f'export PYTHONPATH="{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"', *config.setup],
            additional_parameters=more, **{key: value for key, value in chosen.items() if value},
        )  # fmt: skip
        return executor.submit(job).job_id

    def to_the_end(self) -> dict[str, Result]:
        """Follows the jobs until none is left."""
        running: set[str] = set()
        late: dict[str, int] = {}
        while waiting := [task for task in self.graph.missing if task.key not in self.books.results]:
            states = states_of(list(self.jobs.values()))
            for task in waiting:
                if task.key in self.books.results:  # one that it needs failed just now
                    continue
                state = states.get(self.jobs[task.key])
                written = self.books.result_of(task).exists()
                if task.key not in running and (written or (state and state.state == "RUNNING")):
                    running.add(task.key)
                    self.progress.started(task)
                if written:
                    self.books.end(task)
                elif (state is None or state.ended) and not self._waits_for_another(task):
                    late[task.key] = late.get(task.key, 0) + 1
                    if late[task.key] > _LATE:
                        self.books.die(task, f"its job {self.jobs[task.key]} ended without a result: {_words(state)}")
            time.sleep(self.config.look_seconds)
        return self.books.results

    def _waits_for_another(self, task: Task) -> bool:
        """Whether a task that it needs has not ended: if its job is over, it is because that one's failed."""
        return any(need in self.jobs and need not in self.books.results for need in task.needs)

    def leave(self) -> dict[str, Result]:
        """Queues the job that makes the report, after all others however they end, and leaves all to SLURM."""
        words = [word for word in sys.argv[1:] if not word.startswith("report=")]
        path = self.books.work / "logs" / "report.log"
        report = Job([sys.executable, "-P", str(ROOT / "run.py"), *words, "report=true"], str(Path.cwd()), 1, str(path))
        after = f"afterany:{':'.join(self.jobs.values())}"
        number = self._submit("report", report, Resources(), after)
        log.info("job %s makes the report when they have ended; what it prints: %s", number, path)
        return {key: Result(key, QUEUED, error=f"job {job} of SLURM makes it") for key, job in self.jobs.items()}


def _words(state: Any) -> str:
    return "SLURM does not know it any more" if state is None else state.words
