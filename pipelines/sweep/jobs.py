"""The jobs of a multirun, composed as Hydra composes them, before any of them runs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict

from pipelines.chain.run import refused
from pipelines.config import Config
from pipelines.config.keys import refuse_unknown_keys
from pipelines.config.plugins import load_modules
from pipelines.rehearsal.config import rehearsed
from pipelines.sweep.combinations import cell_overrides, expand
from pipelines.sweep.tuned import apply_tuned


@dataclass(frozen=True)
class Job:
    """One combination of a sweep: a cell, once it is known to be one."""

    config: Config
    """What it is."""

    overrides: list[str]
    """That it was composed with."""

    composed: DictConfig
    """Hydra's own view of it, with `hydra` in it."""

    folder: Path
    """Where its record goes."""


def typed(composed: DictConfig, overrides: Sequence[str], cell: Sequence[str] = ()) -> Config:
    """The configuration of a job without Hydra's own part, checked.

    A cell of an experiment's lines is composed again with its own overrides after the others, unless it was.

    Args:
        composed: by Hydra.
        overrides: the job's.
        cell: what it was composed with after these.

    Raises:
        ValueError: a key that nothing reads, or an experiment that the scale refuses.
    """
    load_modules(list(composed.plugins))
    refuse_unknown_keys(composed)
    own = cell_overrides(composed)
    if own != list(cell):
        composed = compose(config_name="config", overrides=[*overrides, *own])
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    if config.seeds > 1 and not config.experiment.runs:
        raise ValueError(f"seeds={config.seeds}: expected a sweep (-m, or an experiment), and none over seed beside it")
    if reason := refused(config):
        raise ValueError(reason)
    return rehearsed(apply_tuned(config, [*overrides, *own]))


def refusal(master: DictConfig) -> str | None:
    """Why the scale refuses an experiment; None if it does not."""
    config = OmegaConf.to_object(_without_hydra(master))
    assert isinstance(config, Config)
    return refused(config)


def compose_jobs(loader: ConfigLoader, master: DictConfig, batch: Sequence[Sequence[str]], first: int = 0) -> list[Job]:
    """The jobs of a sweep.

    Args:
        loader: Hydra's.
        master: the sweep's own configuration.
        batch: the overrides of each job.
        first: number of the first of them.

    Raises:
        ValueError, OmegaConfBaseException: as composing any of them does.
    """
    jobs = []
    for number, overrides in enumerate(batch, first):
        cell = _expected_cell(master, overrides)
        composed = loader.load_sweep_config(master, [*overrides, *cell])
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        folder = Path(str(master.hydra.sweep.dir)) / str(composed.hydra.sweep.subdir)
        own = list(filter_overrides(overrides))
        jobs.append(Job(typed(_without_hydra(composed), own, cell), own, composed, folder))
    return jobs


def _expected_cell(master: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides that a job's cell should have, by the sweep's own lines: composing once is half the time."""
    numbers = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("experiment.cell=")]
    if not numbers or not numbers[-1].isdigit():
        return []
    combinations = expand(list(master.experiment.cells))
    return combinations[int(numbers[-1])] if int(numbers[-1]) < len(combinations) else []


def _without_hydra(composed: DictConfig) -> DictConfig:
    bare = copy.deepcopy(composed)
    with open_dict(bare):
        del bare["hydra"]
    return bare
