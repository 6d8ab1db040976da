"""Configurations composed as Hydra's jobs compose them, for tests that run nothing."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pipelines import schema
from pipelines.cells import expand
from pipelines.cli import CONF
from pipelines.config import Config


@pytest.fixture(autouse=True)
def hydra_conf() -> Iterator[None]:
    """Hydra, ready to compose conf/."""
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def sweep_of(experiment: str, scale: str) -> list[tuple[list[str], Config]]:
    """The overrides and the configuration of every job of an experiment, those that are no rows too."""
    chosen = [f"+experiment={experiment}", f"scale={scale}"]
    sweep = compose("config", overrides=chosen, return_hydra_config=True)
    params = OmegaConf.to_container(sweep.hydra.sweeper.params, resolve=True)
    lines = list(sweep.experiment.cells) or [" ".join(f"{key}={value}" for key, value in params.items())]
    jobs = expand(lines)
    assert not sweep.experiment.cells or params["experiment.cell"].endswith(str(len(jobs) - 1))
    return [(own, OmegaConf.to_object(compose("config", overrides=[*chosen, *own]))) for own in jobs]
