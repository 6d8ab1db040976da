"""One cell: its chain run, its metrics gathered into the record that reports and the tracker read."""

import logging
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipelines.cells import own_overrides
from pipelines.chain import Cell, cell_of, row_of
from pipelines.config import Config
from pipelines.stage import Made, Node, Runner
from pipelines.versions import versions

log = logging.getLogger(__name__)


def run_cell(config: Config) -> dict[str, Any]:
    """Runs what is missing of the cell's chain and returns its record (a line of cells.jsonl)."""
    from pipelines.preflight import check

    cell = cell_of(config)
    runner = Runner(Path(config.outputs))
    check(cell, runner.outputs)
    started = time.time()
    made = {one.node.path(runner.outputs): one for one in runner.run_all(cell.nodes())}
    log.info("%s: all stages there after %.1f s", describe(config), time.time() - started)
    return _record(cell, made, runner.outputs)


def describe(config: Config) -> str:
    """The cell in a few words, for logs: its row, and the line of overrides that it has of its own."""
    row = row_of(config)
    calibrated = "" if row["harc"] == "no" else f" + {config.calibrate.method.upper()}"
    line = f" [{own_overrides(config)}]" if config.experiment.cell is not None else ""
    return f"{row['method']}{calibrated}{line} ({config.scale.name})"


def excluded(config: Config) -> str | None:
    """Why this combination of a sweep is not a row: the experiment says so, or the scale can't serve it."""
    chosen = {"merge": config.merge.method, "calibrate": config.calibrate.method}
    if any(all(chosen.get(key) == value for key, value in rule.items()) for rule in config.experiment.exclude):
        return f"not a row of {config.experiment.name}"
    if config.merge.method in config.scale.unsupported:
        return f"not run at scale={config.scale.name}: {config.scale.unsupported[config.merge.method]}"
    return None


def identity(config: Config) -> dict[str, Any]:
    """The part of a record that is known before anything runs."""
    return {
        "experiment": config.experiment.name,
        "scale": config.scale.name,
        "row": row_of(config),
        "merge": config.merge.method,
        "calibrate": config.calibrate.method,
        "swap": config.swap,
        "sft": config.sft,
        "config": OmegaConf.to_container(OmegaConf.structured(config)),
        "versions": versions(),
    }


def failed(config: Config, error: str) -> dict[str, Any]:
    """The record of a cell that raised."""
    return {**identity(config), "status": "failed", "error": error}


def _record(cell: Cell, made: dict[Path, Made], outputs: Path) -> dict[str, Any]:
    def result(node: Node) -> Made:
        return made[node.path(outputs)]

    method = [result(node) for node in (cell.merged, cell.calibrated) if node is not None]
    return {
        **identity(cell.config),
        "status": "ok",
        "error": None,
        "tasks": _tasks(cell, [result(node) for node in cell.evaluations]),
        "routing": result(cell.diagnosed).metrics if cell.diagnosed else None,
        "routing_before": result(cell.diagnosed_before).metrics if cell.diagnosed_before else None,
        "calibration": result(cell.calibrated).metrics if cell.calibrated else None,
        "calibration_two": result(cell.calibrated_beside).metrics if cell.calibrated_beside else None,
        "cost": {name: result(node).metrics["repeats"] for name, node in cell.costs.items()} or None,
        "runtime_s": sum(one.manifest["seconds"] for one in method) if method else None,
        "peak_memory_gb": max((one.manifest["peak_memory_gb"] for one in method), default=None),
        "stages": [
            {
                "stage": one.node.stage,
                "label": one.node.label,
                "key": one.node.key,
                "path": str(one.path),
                "made": one.made,
                "seconds": one.manifest["seconds"],
                "peak_memory_gb": one.manifest["peak_memory_gb"],
            }
            for one in made.values()
        ],
    }


def _tasks(cell: Cell, evaluations: list[Made]) -> dict[str, Any]:
    results = {task: value for one in evaluations for task, value in one.metrics["tasks"].items()}
    return {
        column: {"task": task, "domain": domain, **results[task]}
        for column, (domain, task) in cell.columns.items()
        if task in results
    }
