"""Hydra callback: when a sweep has ended, its report is made, shown and sent to the tracker."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pipelines.config import ExperimentConfig, TrackerConfig
from pipelines.records import read_records

log = logging.getLogger(__name__)


@dataclass
class SweepStatus:
    """Exit status of the process, set when a sweep ends: 1 if a cell failed or is missing."""

    code: int = 0


sweep_status = SweepStatus()


class ReportCallback(Callback):
    """Makes `outputs/reports/<experiment>-<scale>/` from the cells of the sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once by Hydra in the launching process, also when cells failed (they recorded that themselves)."""
        if config.plan:
            return
        sweep_status.code = 1
        records = read_records(Path(config.hydra.sweep.dir))
        if not records:
            log.error("no cell of the sweep left a record in %s", config.hydra.sweep.dir)
            return
        from pipelines.report import build_report, print_report
        from pipelines.tracking import log_report

        experiment = cast(ExperimentConfig, OmegaConf.to_object(config.experiment))
        tracker = cast(TrackerConfig, OmegaConf.to_object(config.tracker))
        report = build_report(experiment, config.scale.name, records, Path(config.outputs))
        log_report(tracker, experiment.name, config.scale.name, report.path)
        print_report(report)
        sweep_status.code = int(bool(report.failed))
