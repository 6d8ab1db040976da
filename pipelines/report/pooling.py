"""Replicates of one sweep, a seed each, as one set of cells: their means, and the replicates behind them.

A table of pooled cells is made as any other. What depends on problems (accuracies, losses, their intervals) is
computed from the replicates (`replicates`); all other measures are the mean over seeds.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pipelines.record import CellRecord, TaskResult

_BY_SEQUENCE = ("loss_by_sequence", "source_loss_by_sequence", "output_kl_by_sequence", "response_tokens")


@dataclass(frozen=True)
class PooledRecord(CellRecord):
    """A cell of several seeds. replicates: the cell of each seed, in the order of the seeds; empty for a gap."""

    replicates: list[CellRecord] = field(default_factory=list)


def replicates(cell: CellRecord | None) -> list[CellRecord]:
    """The cells that a row's numbers come from: the cell itself, or its replicates."""
    if cell is None:
        return []
    return cell.replicates if isinstance(cell, PooledRecord) else [cell]


def seeds_of(cells: Sequence[CellRecord]) -> list[int]:
    """The seeds of these cells, or of the replicates that they pool, in order."""
    return sorted({one.seed or 0 for cell in cells for one in replicates(cell)})


def pool(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """One cell for each that a sweep has under every seed, in the order of the sweep.

    A cell that one of the seeds did not finish is a gap, since the others alone are another table; its reason names
    the seed.
    """
    seeds = seeds_of(cells)
    groups: dict[tuple[str, ...], list[CellRecord]] = {}
    for cell in cells:
        own = tuple(word for word in cell.overrides if word.lstrip("+").partition("=")[0] != "seed")
        groups.setdefault(own, []).append(cell)
    return [_pool_one(sorted(group, key=lambda cell: cell.seed or 0), own, seeds) for own, group in groups.items()]


def _pool_one(group: list[CellRecord], overrides: tuple[str, ...], seeds: list[int]) -> CellRecord:
    first = group[0]
    pooled = PooledRecord(**{one.name: getattr(first, one.name) for one in dataclasses.fields(CellRecord)})
    pooled = dataclasses.replace(
        pooled, overrides=list(overrides), config=_together([cell.config for cell in group]), seed=None
    )
    if all(cell.status == "excluded" for cell in group):
        return pooled
    gaps = [f"seed {cell.seed}: {cell.status}, {cell.error}" for cell in group if cell.status != "ok"]
    missing = [seed for seed in seeds if seed not in {cell.seed or 0 for cell in group}]
    gaps += [f"seed {seed}: no cell of this sweep made it" for seed in missing]
    if gaps:
        nothing: dict[str, Any] = {"tasks": {}, "cost": {}, **dict.fromkeys(_MEASURED)}
        return dataclasses.replace(pooled, status="failed", error="; ".join(gaps), **nothing)
    columns = [name for name in first.tasks if all(name in cell.tasks for cell in group)]
    return dataclasses.replace(
        pooled,
        tasks={name: _pool_task([cell.tasks[name] for cell in group], seeds) for name in columns},
        **{name: _mean([getattr(cell, name) for cell in group]) for name in _MEASURED},
        cost={name: [run for cell in group for run in cell.cost.get(name, [])] for name in first.cost},
        stages=[stage for cell in group for stage in cell.stages],
        replicates=group,
    )


_MEASURED = ("routing", "routing_before", "calibration", "calibration_two", "runtime_s", "peak_memory_gb")


def _pool_task(tasks: list[TaskResult], seeds: list[int]) -> TaskResult:
    return dataclasses.replace(
        tasks[0],
        accuracy=fmean(task.accuracy for task in tasks),
        ci95=None,
        ids=[f"seed {seed}: {one}" for seed, task in zip(seeds, tasks, strict=True) for one in task.ids],
        counts=[count for task in tasks for count in task.counts],
    )


def _mean(values: list[Any]) -> Any:
    """The mean of measures of one shape: of numbers (whole ones stay whole), element by element, field by field.

    Lists of different lengths have the mean of what all have (residuals by iteration); measures by sequence, which are
    of other sequences under every seed, stand one after the other. What is no number is the first's.
    """
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, bool):
        return all(values)
    if isinstance(first, int | float):
        mean = fmean(values)
        return round(mean) if all(isinstance(value, int) for value in values) else mean
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if isinstance(first, list):
        return [_mean(list(ones)) for ones in zip(*values, strict=False)]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = {one.name: [getattr(value, one.name) for value in values] for one in dataclasses.fields(first)}
        return dataclasses.replace(
            first, **{name: _in_turn(ones) if name in _BY_SEQUENCE else _mean(ones) for name, ones in fields.items()}
        )
    return first


def _in_turn(values: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    return {domain: [one for value in values for one in value.get(domain, [])] for domain in values[0]}


def _together(values: list[Any]) -> Any:
    """A configuration that the replicates share; where their values differ (seeds), all of these in a list."""
    first = values[0]
    if all(isinstance(value, dict) for value in values):
        return {key: _together([value.get(key) for value in values]) for key in first}
    return first if all(value == first for value in values) else list(values)
