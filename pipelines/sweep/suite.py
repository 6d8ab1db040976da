"""`+experiment=paper`: the cells of several experiments as one graph, then their reports and a page that links them.

An experiment that the scale refuses is left out, with the reason; one that fails does not stop the others, the page
says so and the exit status is 1.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from pipelines.config import Config
from pipelines.explain import explain
from pipelines.graph.make import make
from pipelines.graph.page import print_plan
from pipelines.sweep.callbacks import report_sweep
from pipelines.sweep.jobs import Job, compose_jobs, refusal
from pipelines.sweep.launch import gather
from pipelines.sweep.seeds import sweep_seeds

log = logging.getLogger(__name__)


def run_suite(config: Config) -> None:
    """Runs `config.experiment.runs` with the user's own overrides, then makes the index page.

    Raises:
        RuntimeError: some of them failed; names them.
    """
    from pipelines.report import build_index

    hydra_config = HydraConfig.get()
    own = [word for word in hydra_config.overrides.task if not word.lstrip("+").startswith("experiment")]
    loader = GlobalHydra.instance().config_loader()
    masters: dict[str, DictConfig] = {}
    jobs: dict[str, list[Job]] = {}
    left_out: dict[str, str] = {}
    failed: list[str] = []
    for name in config.experiment.runs:
        try:
            masters[name] = loader.load_configuration("config", [f"+experiment={name}", *own], RunMode.MULTIRUN)
            if reason := refusal(masters[name]):
                log.info("+experiment=%s is left out: %s", name, reason)
                left_out[name] = reason
                continue
            sweep_seeds(masters[name])
            jobs[name] = compose_jobs(loader, masters[name], _batch(masters[name]))
        except Exception as error:
            log.error("+experiment=%s cannot be composed: %s", name, explain(error))
            failed.append(name)
    cells = [job.config for each in jobs.values() for job in each]
    if config.plan:
        print_plan(cells)
    elif cells:
        making = make(cells, Path(hydra_config.runtime.output_dir) / "stages")
        if making.queued:
            return
        row = 0
        for name, each in jobs.items():
            context = HydraContext(config_loader=loader, callbacks=Callbacks(masters[name]))
            for job in each:
                gather(context, making, row, job)
                row += 1
            if not report_sweep(masters[name]):
                failed.append(name)
    if not config.plan:
        names = in_the_papers_order(config.experiment.runs)
        page = build_index(
            Path(config.outputs), config.scale.name, names, left_out,
            beyond=config.experiment.beyond, seed=config.seed, seeds=config.seeds,
        )  # fmt: skip
        log.info("all reports: %s", page)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(config.experiment.runs) - len(left_out)} experiments failed: {', '.join(failed)}"
        )


def in_the_papers_order(experiments: Sequence[str]) -> list[str]:
    """Tables, then figures, then the rest."""
    return sorted(experiments, key=lambda name: (not name.startswith("table"), not name.startswith("fig"), name))


def _batch(master: DictConfig) -> list[list[str]]:
    """The overrides of each job of an experiment, as Hydra's own sweeper combines them."""
    params = OmegaConf.to_container(master.hydra.sweeper.params or {}, resolve=True)
    assert isinstance(params, dict)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    words = [*(f"{key!s}={value}" for key, value in params.items()), *master.hydra.overrides.task]
    return BasicSweeper.split_arguments(parser.parse_overrides(words), None)[0]
