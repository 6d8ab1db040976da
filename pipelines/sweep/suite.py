"""`+experiment=paper`: the cells of several experiments as one graph, then their reports and a page that links them.

An experiment that the scale refuses is left out, with the reason; one that fails does not stop the others, the page
says so and the exit status is 1.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from pipelines.config import Config
from pipelines.explain import explain
from pipelines.graph.make import make
from pipelines.graph.page import print_plan
from pipelines.sweep.composed import Experiment, experiment_of, master_of
from pipelines.sweep.jobs import refusal
from pipelines.sweep.tuned import AUTO

log = logging.getLogger(__name__)


def run_suite(config: Config) -> None:
    """Runs `config.experiment.runs` with the user's own overrides, then makes the index page.

    Raises:
        RuntimeError: some of them failed; names them.
        ValueError: tuned=auto.
    """
    if config.tuned == AUTO:
        raise ValueError(
            "tuned=auto is of one experiment, as +experiment=table1 tuned=auto: the paper's differ in their domains"
        )
    from pipelines.report import build_index

    hydra_config = HydraConfig.get()
    own = [word for word in hydra_config.overrides.task if not word.lstrip("+").startswith("experiment")]
    experiments: dict[str, Experiment] = {}
    left_out: dict[str, str] = {}
    failed: list[str] = []
    for name in config.experiment.runs:
        try:
            master = master_of(name, own)
            if reason := refusal(master):
                log.info("+experiment=%s is left out: %s", name, reason)
                left_out[name] = reason
                continue
            experiments[name] = experiment_of(master)
        except Exception as error:
            log.error("+experiment=%s cannot be composed: %s", name, explain(error))
            failed.append(name)
    cells = [job.config for each in experiments.values() for job in each.jobs]
    if config.plan:
        print_plan(cells)
    elif cells:
        making = make(cells, Path(hydra_config.runtime.output_dir) / "stages")
        if making.queued:
            return
        row = 0
        for name, each in experiments.items():
            if not each.report(making, row):
                failed.append(name)
            row += len(each.jobs)
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
