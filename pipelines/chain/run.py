"""One cell: in words, and its stages' metrics gathered into the record that reports and the tracker read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipelines.chain.cell import Cell, row_of
from pipelines.config import Config
from pipelines.record import (
    CalibrationResult,
    CellRecord,
    Repetition,
    RoutingResult,
    RowLabels,
    StageRecord,
    TaskResult,
)
from pipelines.runner.make import Made
from pipelines.runner.stage import Node
from pipelines.runner.versions import versions
from pipelines.sweep.combinations import own_overrides
from pipelines.typed import from_json


def describe(config: Config) -> str:
    """The cell in a few words, for logs: its row, and the line of overrides that it has of its own."""
    row = row_of(config)
    calibrated = "" if row["harc"] == "no" else f" + {config.calibrate.method.upper()}"
    line = f" [{own_overrides(config)}]" if config.experiment.cell is not None else ""
    seed = f", seed {config.seed}" if config.seed else ""
    return f"{row['method']}{calibrated}{line} ({config.scale.name}{seed})"


def excluded(config: Config) -> str | None:
    """Why this combination of a sweep is not a row: the experiment says so, or the scale can't serve it."""
    chosen = {"merge": config.merge.method, "calibrate": config.calibrate.method, "sft": str(config.sft).lower()}
    if any(all(chosen.get(key) == value for key, value in rule.items()) for rule in config.experiment.exclude):
        return f"not a row of {config.experiment.name}"
    if config.merge.method in config.scale.unsupported:
        return f"not run at scale={config.scale.name}: {config.scale.unsupported[config.merge.method]}"
    return None


def refused(config: Config) -> str | None:
    """Why no cell of this experiment can be run at the scale, and what to do; None if they can."""
    if config.larger and "larger" in config.scale.unsupported:
        return f"larger=true is not run at scale={config.scale.name}: {config.scale.unsupported['larger']}"
    return None


def unmeasured(config: Config, status: str, error: str | None, overrides: Sequence[str] = ()) -> CellRecord:
    """The record of a cell as far as it is known before anything runs.

    Args:
        config: the cell's.
        status: `failed` or `excluded`.
        error: why it has no numbers.
        overrides: the job's.
    """
    settings = dataclasses.asdict(config.calibrate)
    row = row_of(config)
    return CellRecord(
        experiment=config.experiment.name,
        scale=config.scale.name,
        row=RowLabels(row["method"], row["harc"]),
        merge=config.merge.method,
        calibrate=config.calibrate.method,
        status=status,
        error=error,
        swap=config.swap,
        sft=config.sft,
        seed=config.seed,
        repair=" ".join(settings["parts"]) if config.calibrate.method == "repair" else None,
        target=settings.get("target"),
        overrides=list(overrides),
        config=_plain(config),
        versions=versions(),
    )


def _plain(config: Config) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def record_of(cell: Cell, made: dict[Path, Made], outputs: Path, overrides: Sequence[str] = ()) -> CellRecord:
    """The record of a cell whose stages all stand.

    Args:
        cell: the cell.
        made: directory -> finished stage, of all its nodes.
        outputs: folder that the directories are in.
        overrides: the job's, for the record.
    """

    def result(node: Node) -> Made:
        return made[node.path(outputs)]

    def routing(node: Node | None) -> RoutingResult | None:
        return from_json(RoutingResult, result(node).metrics, str(result(node).path)) if node else None

    def calibration(node: Node | None) -> CalibrationResult | None:
        return from_json(CalibrationResult, result(node).metrics, str(result(node).path)) if node else None

    method = [result(node) for node in (cell.merged, cell.calibrated) if node is not None]
    return dataclasses.replace(
        unmeasured(cell.config, "ok", None, overrides),
        tasks=_tasks(cell, [result(node) for node in cell.evaluations]),
        routing=routing(cell.diagnosed),
        routing_before=routing(cell.diagnosed_before),
        calibration=calibration(cell.calibrated) if cell.config.calibrate.method == "harc" else None,
        calibration_two=calibration(cell.calibrated_beside),
        cost={name: _repetitions(result(node)) for name, node in cell.costs.items()},
        runtime_s=sum(one.manifest["seconds"] for one in method) if method else None,
        peak_memory_gb=max((one.manifest["peak_memory_gb"] for one in method), default=None),
        stages=[
            StageRecord(
                stage=one.node.stage,
                label=one.node.label,
                key=one.node.key,
                path=str(one.path),
                made=one.made,
                seconds=one.manifest["seconds"],
                peak_memory_gb=one.manifest["peak_memory_gb"],
            )
            for one in made.values()
        ],
    )


def _repetitions(cost: Made) -> list[Repetition]:
    return [from_json(Repetition, one, str(cost.path)) for one in cost.metrics["repeats"]]


def _tasks(cell: Cell, evaluations: list[Made]) -> dict[str, TaskResult]:
    results = {task: (value, one.path) for one in evaluations for task, value in one.metrics["tasks"].items()}
    return {
        column: from_json(TaskResult, {"task": task, "domain": domain, **results[task][0]}, str(results[task][1]))
        for column, (domain, task) in cell.columns.items()
        if task in results
    }
