"""Hydra callback: a sweep's seeds before it starts; when it has ended, its report is made, shown and sent on."""

import logging
from pathlib import Path
from typing import Any, cast

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pipelines.config import ExperimentConfig, TrackerConfig
from pipelines.record import read_records
from pipelines.sweep.outcome import Outcome, noted
from pipelines.sweep.seeds import sweep_seeds

log = logging.getLogger(__name__)


class ReportCallback(Callback):
    """Makes `outputs/reports/<experiment>-<scale>/` of the sweep's cells; of several seeds one each, and one of all."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once by Hydra before the sweep: `seeds=3` becomes a sweep over three seeds."""
        sweep_seeds(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once by Hydra in the launching process, also when cells failed (they recorded that themselves)."""
        if config.plan:
            return
        outcome = noted() or Outcome()
        if outcome.queued:
            return
        outcome.status = 1
        outcome.status = int(not report_sweep(config))


def report_sweep(config: DictConfig) -> bool:
    """Makes the report of a sweep, or one per seed and one of all; whether every row has its numbers.

    config: the sweep's own.
    """
    records = read_records(Path(config.hydra.sweep.dir))
    if not records:
        log.error("no cell of the sweep left a record in %s", config.hydra.sweep.dir)
        return False
    from pipelines.report import build_pooled_report, build_report, print_report
    from pipelines.tracking.runs import log_report

    experiment = cast(ExperimentConfig, OmegaConf.to_object(config.experiment))
    tracker = cast(TrackerConfig, OmegaConf.to_object(config.tracker))
    scale, whole = records[0].scale if config.rehearse else config.scale.name, True
    seeds = sorted({record.seed or 0 for record in records})
    reports = [(build_report, [one for one in records if (one.seed or 0) == seed]) for seed in seeds]
    reports += [(build_pooled_report, records)] * (len(seeds) > 1)
    for build, own in reports:
        report = build(experiment, scale, own, Path(config.outputs))
        log_report(tracker, experiment.name, scale, report.path)
        print_report(report)
        whole = whole and not report.failed
    return whole
