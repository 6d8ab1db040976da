"""Weights & Biases, in one place: a run a cell, grouped by experiment, and a run for the report with its folder.

Offline unless WANDB_API_KEY is set or the tracker's mode says otherwise. Tracking is an extra: whatever goes wrong here
is a warning with its reason, never the end of an experiment. Names that runs log (`*` is a domain, or `mean` of them):

    x axis `layer` (from 1)     routing_kl/*, mismatch/*, logit_shift/*       of the cell's model, on held-out text
                                before/routing_kl/*, before/mismatch/*, ...   of the same merge before calibration
                                calibration/kl_before, calibration/kl_after, calibration/iterations, calibration/seconds
    x axis `cg_iteration`       cg_residual/layer_01, ...                     relative residual of conjugate gradients
    config                      experiment_name, scale_name, method_name, harc: what runs are filtered by
    summary                     accuracy/<column>, accuracy_ci95/<column> (per cent), routing_kl, mismatch, ...
"""

import csv
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.config import TrackerConfig
from pipelines.record import CellRecord, LayerResult
from pipelines.typed import to_json

log = logging.getLogger(__name__)

UNITS = {"kl": 1.0, "mismatch": 100.0, "shift": 1.0}  # nats, per cent, a ratio
MEASURES = {"kl": "routing_kl", "mismatch": "mismatch", "shift": "logit_shift"}
CALIBRATION = ("kl_before", "kl_after", "iterations", "seconds")
RESIDUAL_POINTS = 200
_INIT_SECONDS = 30

_offline_since: list[str] = []  # why this process gave up going online, so that it waits for a time-out once


def log_cell(tracker: TrackerConfig, cell: CellRecord) -> str | None:
    """Logs one cell as one run.

    Args:
        tracker: kind `none` does nothing.
        cell: its record. `routing_before`, where a calibrated cell has it, is the routing of the same merge before.

    Returns:
        The run's id, the same whenever the same cell is logged, so that it replaces itself; None when nothing was.
    """

    def write(run: Any) -> None:
        for metric, step in step_metrics(cell).items():
            run.define_metric(metric, step_metric=step)
        for point in [*layer_points(cell), *residual_points(cell)]:
            run.log(point)
        run.summary.update(summary(cell))

    name = f"{cell.row.name} ({cell.scale})"
    return _with_run(
        tracker,
        write,
        what=name,
        id=_identity(cell),
        name=name,
        group=cell.experiment,
        job_type="cell",
        tags=[cell.experiment, cell.scale, cell.merge, cell.calibrate],
        config={
            **cell.config,
            "row": to_json(cell.row),
            "experiment_name": cell.experiment,
            "scale_name": cell.scale,
            "method_name": cell.merge,
            "harc": cell.row.harc,
            "versions": cell.versions,
        },
    )


def log_report(tracker: TrackerConfig, experiment: str, scale: str, path: str | Path) -> str | None:
    """Logs a report folder as an artifact, and its table.csv as a table, in a run of the same group.

    Args:
        tracker: kind `none` does nothing.
        experiment: its name.
        scale: its scale's.
        path: the report folder.

    Returns:
        The run's id, or None when nothing was logged.
    """

    def write(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(Path(path).name, type="report", metadata={"scale": scale})
        artifact.add_dir(str(path))
        run.log_artifact(artifact)
        with (Path(path) / "table.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        run.log({"table": wandb.Table(columns=[*header], data=rows)})

    run = _with_run(
        tracker,
        write,
        what=f"the report {Path(path).name}",
        name=f"report ({scale})",
        group=experiment,
        job_type="report",
        tags=[experiment, scale, "report"],
        config={"experiment_name": experiment, "scale_name": scale},
    )
    flush()
    return run


def flush() -> None:
    """Waits until all that this process logged is on disk (a finished run's last records are written after it)."""
    if "wandb" in sys.modules:
        try:
            sys.modules["wandb"].teardown()
        except Exception as error:
            log.warning("W&B did not end cleanly: %s: %s", type(error).__name__, error)


def step_metrics(cell: CellRecord) -> dict[str, str]:
    """Metrics that this cell logs against an x axis of their own, as define_metric takes them."""
    named = {key for point in layer_points(cell) for key in point if key != "layer"}
    axes = dict.fromkeys(sorted({f"{key.rpartition('/')[0]}/*" for key in named}), "layer")
    return axes | ({"cg_residual/*": "cg_iteration"} if any(True for _ in residual_points(cell)) else {})


def layer_points(cell: CellRecord) -> list[dict[str, float]]:
    """One point a layer: routing now and before calibration, and what calibration says of itself."""
    points: dict[int, dict[str, float]] = {}

    def put(layer: int, name: str, value: Any) -> None:
        if value is not None and math.isfinite(value):
            points.setdefault(layer, {"layer": layer})[name] = float(value)

    for prefix, routing in (("", cell.routing), ("before/", cell.routing_before)):
        for key, measure in MEASURES.items():
            domains = routing.by_layer(key) if routing else {}
            for domain, values in domains.items():
                for layer, value in enumerate(values, 1):
                    put(layer, f"{prefix}{measure}/{domain}", UNITS[key] * value)
            for layer, of_domains in enumerate(zip(*domains.values(), strict=False), 1):
                put(layer, f"{prefix}{measure}/mean", UNITS[key] * sum(of_domains) / len(of_domains))
    for one in _layers(cell):
        for name in CALIBRATION:
            put(one.layer + 1, f"calibration/{name}", getattr(one, name))
    return [points[layer] for layer in sorted(points)]


def residual_points(cell: CellRecord) -> Iterator[dict[str, float]]:
    """Residuals of all layers by iteration, at most RESIDUAL_POINTS of them and always each layer's last."""
    layers = {f"cg_residual/layer_{one.layer + 1:02d}": one.residuals for one in _layers(cell) if one.residuals}
    longest = max((len(values) for values in layers.values()), default=0)
    stride = max(math.ceil(longest / RESIDUAL_POINTS), 1)
    kept = {*range(0, longest, stride), *(len(values) - 1 for values in layers.values())}
    for i in sorted(kept):
        yield {"cg_iteration": i, **{name: values[i] for name, values in layers.items() if i < len(values)}}


def _layers(cell: CellRecord) -> list[LayerResult]:
    return cell.calibration.layers if cell.calibration else []


def summary(cell: CellRecord) -> dict[str, Any]:
    """A cell's single numbers, named as in the report's table, accuracies in per cent."""
    from pipelines.report.tables.accuracy import accuracy_table, cells_layout

    row = accuracy_table([cell], cells_layout([cell])).rows[0]
    accuracies = {column for column in row.values if column in row.ci95}
    before = cell.routing_before
    means = {"kl": before.kl_mean, "mismatch": before.mismatch_mean} if before else {}
    return {
        "status": cell.status,
        **({"error": cell.error} if cell.error else {}),
        **{f"accuracy/{name}" if name in accuracies else name: value for name, value in row.values.items()},
        **{f"accuracy_ci95/{name}": value for name, value in row.ci95.items()},
        **{f"before/{MEASURES[key]}": UNITS[key] * value for key, value in means.items() if value is not None},
    }


def mode_of(tracker: TrackerConfig) -> str:
    """Online or offline (or another mode of wandb.init): the tracker's, else online where there is a WANDB_API_KEY."""
    return tracker.mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


def _identity(cell: CellRecord) -> str:
    """The same for the same cell of the same stages, whichever run of the program logs it."""
    stages = [stage.key for stage in cell.stages]
    parts = [cell.experiment, cell.scale, to_json(cell.row), cell.overrides, stages]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _with_run(tracker: TrackerConfig, write: Callable[[Any], None], *, what: str, **about: Any) -> str | None:
    if tracker.kind == "none":
        return None
    try:
        run = _start(tracker, about)
        try:
            write(run)
        finally:
            run.finish()
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        log.warning("W&B did not log %s: %s: %s (tracker=none turns tracking off)", what, type(error).__name__, reason)
        return None
    log.debug("W&B run %s: %s", run.id, what)
    return run.id


def _start(tracker: TrackerConfig, about: dict[str, Any]) -> Any:
    import wandb

    mode: Any = mode_of(tracker)
    if mode == "online" and _offline_since:
        mode = "offline"
    directory = Path(tracker.directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    # Cells are logged when they are done: nothing of the console, the machine's load or the code is worth a second.
    settings = wandb.Settings(
        console="off", quiet=True, silent=True, init_timeout=_INIT_SECONDS, x_disable_stats=True, x_disable_meta=True,
        x_save_requirements=False, disable_git=True, disable_code=True,
    )  # fmt: skip
    options: dict[str, Any] = {
        "project": tracker.project,
        "entity": tracker.entity,
        "dir": str(directory),
        "reinit": "create_new",
    }
    try:
        return wandb.init(**options, **about, mode=mode, settings=settings)
    except Exception as error:
        if mode != "online":
            raise
        reason = " ".join(str(error).split())
        _offline_since.append(reason)
        log.warning("W&B cannot be reached (%s); runs go to %s, `wandb sync` sends them", reason, directory / "wandb")
        wandb.teardown()  # the service still holds the id of the run that could not start
        return wandb.init(**options, **about, mode="offline", settings=settings)
