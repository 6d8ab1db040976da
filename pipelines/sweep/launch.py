"""A multirun: the chains of all its cells united into one graph, made by an engine, and gathered into their records."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pipelines.config import Config
from pipelines.graph.make import Making, make
from pipelines.graph.page import print_plan
from pipelines.record import write_record
from pipelines.sweep.jobs import Job, compose_jobs
from pipelines.sweep.outcome import note_queued

log = logging.getLogger(__name__)

_LOG = "sweep.log"


def launch(
    context: HydraContext,
    task_function: TaskFunction,
    master: DictConfig,
    batch: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """What Hydra's launcher does with the jobs of a multirun; see `hydra.plugins.launcher.Launcher.launch`.

    Jobs that are no cells (+experiment=paper, calibrate, dashboard) run one by one, as by Hydra's basic launcher.
    """
    setup_globals()
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    jobs = compose_jobs(context.config_loader, master, batch, first)
    if not all(is_cell(job.config) for job in jobs):
        return [_run(context, job, task_function) for job in jobs]
    folder = Path(str(master.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    if jobs[0].config.plan:
        print_plan([job.config for job in jobs])
        return []
    with_log_in(folder)
    making = make([job.config for job in jobs], folder / "stages")
    if making.queued:
        note_queued()
        return []
    return [gather(context, making, number, job) for number, job in enumerate(jobs)]


def is_cell(config: Config) -> bool:
    """Whether the configuration is a cell's, and not that of something that is done in a cell's place."""
    experiment = config.experiment
    return not (experiment.runs or experiment.tool or experiment.dashboard)


def gather(context: HydraContext, making: Making, row: int, job: Job) -> JobReturn:
    """Writes the record of a row where Hydra's job would have left it, and sends it to the tracker."""

    def record(_: Any) -> None:
        found = making.record(row, job.overrides)
        write_record(job.folder, found)
        if found.status == "ok":
            from pipelines.tracking.runs import log_cell

            log_cell(job.config.tracker, found)

    return _run(context, job, record, configure_logging=False)


def _run(context: HydraContext, job: Job, function: TaskFunction, configure_logging: bool = True) -> JobReturn:
    return run_job(
        hydra_context=context,
        task_function=function,
        config=job.composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        configure_logging=configure_logging,
    )


def with_log_in(folder: Path) -> None:
    """Log lines go to sweep.log of the folder too."""
    root = logging.getLogger()
    handler = logging.FileHandler(folder / _LOG, encoding="utf-8")
    if root.handlers:
        handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)
