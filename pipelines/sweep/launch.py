"""A multirun: the chains of all its cells united into one graph, made by an engine, and gathered into their records."""

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pipelines.config import Config
from pipelines.graph.make import make
from pipelines.graph.page import print_plan
from pipelines.sweep.combinations import cell_overrides
from pipelines.sweep.composed import gather, run
from pipelines.sweep.jobs import compose_jobs
from pipelines.sweep.outcome import note_queued
from pipelines.sweep.tuning import grid_of, tune

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
        return [run(context, job, task_function) for job in jobs]
    folder = Path(str(master.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    configs = [job.config for job in jobs]
    grid = grid_of(configs, list(master.hydra.overrides.task))
    if configs[0].plan:
        print_plan([*([job.config for job in grid.jobs] if grid else []), *configs])
        if grid:
            log.info("tuned=auto: its choice may need other merges than these, which have the settings before tuning")
        return []
    with_log_in(folder)
    if grid:
        words = [[*job.overrides, *cell_overrides(job.composed)] for job in jobs]
        configs = tune(grid, configs, words, folder / "stages")
    making = make(configs, folder / "stages")
    if making.queued:
        note_queued()
        return []
    return [gather(context, making, number, job) for number, job in enumerate(jobs)]


def is_cell(config: Config) -> bool:
    """Whether the configuration is a cell's, and not that of something that is done in a cell's place."""
    experiment = config.experiment
    return not (experiment.runs or experiment.tool or experiment.dashboard)


def with_log_in(folder: Path) -> None:
    """Log lines go to sweep.log of the folder too."""
    root = logging.getLogger()
    handler = logging.FileHandler(folder / _LOG, encoding="utf-8")
    if root.handlers:
        handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)
