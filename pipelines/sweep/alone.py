"""One cell alone: its stages made, its record and report written. What fails is raised."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from pipelines.config import Config
from pipelines.graph.make import make
from pipelines.graph.page import print_plan
from pipelines.record import write_record
from pipelines.sweep.tuned import AUTO


def run_alone(config: Config) -> None:
    """Runs the cell, or shows the plan of it.

    Raises:
        StageError: a stage failed.
        ValueError: tuned=auto, which is of sweeps.
        Exception: whatever its composition or the checks before it raise.
    """
    if config.tuned == AUTO:
        raise ValueError("tuned=auto is of a sweep (an experiment, or -m): a cell alone takes tuned=FILE")
    if config.plan:
        print_plan([config])
        return
    from pipelines.report import build_report, print_report
    from pipelines.tracking.runs import log_cell

    hydra_config = HydraConfig.get()
    out = Path(hydra_config.runtime.output_dir)
    making = make([config], out / "stages")
    if making.queued:
        return
    if (error := making.error(0)) is not None:
        raise error
    record = making.record(0, list(hydra_config.overrides.task))
    write_record(out, record)
    log_cell(config.tracker, record)
    print_report(build_report(config.experiment, config.scale.name, [record], Path(config.outputs)))
