"""Jobs run as Hydra runs them, and an experiment inside a run of another: its sweep composed, and its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from pipelines.graph.make import Making
from pipelines.record import write_record
from pipelines.sweep.callbacks import report_sweep
from pipelines.sweep.jobs import Job, compose_jobs
from pipelines.sweep.seeds import sweep_seeds


@dataclass(frozen=True)
class Experiment:
    """One experiment, composed."""

    master: DictConfig
    """The sweep's own configuration, Hydra's part included."""

    jobs: list[Job]
    """Its cells."""

    def report(self, making: Making, first: int) -> bool:
        """Writes the records of the jobs, rows of `making` from `first` on, and the report; whether all is there."""
        context = HydraContext(config_loader=_loader(), callbacks=Callbacks(self.master))
        for number, job in enumerate(self.jobs, first):
            gather(context, making, number, job)
        return report_sweep(self.master)


def master_of(name: str, words: Sequence[str]) -> DictConfig:
    """The configuration of the sweep that `+experiment=NAME` and these overrides are.

    Raises:
        Exception: whatever Hydra's composition raises.
    """
    return _loader().load_configuration("config", [f"+experiment={name}", *words], RunMode.MULTIRUN)


def experiment_of(master: DictConfig) -> Experiment:
    """The experiment of a sweep, with its jobs; `seeds` becomes a sweep over seeds.

    Raises:
        Exception: whatever the composition of a job raises.
    """
    sweep_seeds(master)
    return Experiment(master, compose_jobs(_loader(), master, _batch(master)))


def gather(context: HydraContext, making: Making, row: int, job: Job) -> JobReturn:
    """Writes the record of a row where Hydra's job would have left it, and sends it to the tracker."""

    def record(_: Any) -> None:
        found = making.record(row, job.overrides)
        write_record(job.folder, found)
        if found.status == "ok":
            from pipelines.tracking.runs import log_cell

            log_cell(job.config.tracker, found)

    return run(context, job, record, configure_logging=False)


def run(context: HydraContext, job: Job, function: TaskFunction, configure_logging: bool = True) -> JobReturn:
    """Calls the function within the job, as Hydra's launchers do."""
    return run_job(
        hydra_context=context,
        task_function=function,
        config=job.composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        configure_logging=configure_logging,
    )


def _loader() -> ConfigLoader:
    return GlobalHydra.instance().config_loader()


def _batch(master: DictConfig) -> list[list[str]]:
    """The overrides of each job of an experiment, as Hydra's own sweeper combines them."""
    params = OmegaConf.to_container(master.hydra.sweeper.params or {}, resolve=True)
    assert isinstance(params, dict)
    parser = OverridesParser.create(config_loader=_loader())
    words = [*(f"{key!s}={value}" for key, value in params.items()), *master.hydra.overrides.task]
    return BasicSweeper.split_arguments(parser.parse_overrides(words), None)[0]
