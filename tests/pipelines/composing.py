"""Configurations composed as Hydra's jobs compose them, for tests that run nothing."""

import functools
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pipelines.cli import CONF
from pipelines.config import Config, schema
from pipelines.sweep.combinations import expand


@pytest.fixture(autouse=True)
def hydra_conf() -> Iterator[None]:
    """Hydra, ready to compose conf/."""
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@functools.cache
def sweep_of(experiment: str, scale: str, *, whole: bool = True) -> list[tuple[list[str], Config]]:
    """The overrides and the configuration of every job of an experiment, those that are no rows too.

    whole=False: of each line of cells the first combination and the last (a third of a second each to compose).
    """
    chosen = [f"+experiment={experiment}", f"scale={scale}"]
    sweep = compose("config", overrides=chosen, return_hydra_config=True)
    params = OmegaConf.to_container(sweep.hydra.sweeper.params, resolve=True)
    lines = list(sweep.experiment.cells) or [" ".join(f"{key}={value}" for key, value in params.items())]
    jobs = expand(lines)
    assert not sweep.experiment.cells or params["experiment.cell"].endswith(str(len(jobs) - 1))
    if not whole:
        jobs = [jobs[at] for line in lines for jobs in [expand([line])] for at in sorted({0, len(jobs) - 1})]
    return [(own, OmegaConf.to_object(compose("config", overrides=[*chosen, *own]))) for own in jobs]
