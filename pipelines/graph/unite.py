"""Unites the chains of cells into one graph: each distinct stage once, with the rows that need it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipelines.chain.cell import cell_of
from pipelines.chain.run import describe, excluded
from pipelines.config import Config, ScaleConfig
from pipelines.graph.graph import Graph, Row, Task
from pipelines.graph.seconds import Clock, kind_of
from pipelines.rehearsal.rates import StageRate, read_rehearsal
from pipelines.runner.estimate import ModelSize
from pipelines.runner.make import is_made
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node

_WHOLE = ("pretrain", "finetune", "sft", "sample", "evaluate")  # stages that hold all layers of a model


def unite(configs: Sequence[Config], machine: Resources) -> Graph:
    """The graph of cells that share an outputs folder.

    Args:
        configs: of the cells, in the order of the sweep. A cell that cannot be composed is a row with its error.
        machine: what tasks run on; their time depends on it.

    Raises:
        ValueError: no cells, or cells with several outputs folders.
    """
    folders = {config.outputs for config in configs}
    if len(folders) != 1:
        raise ValueError(f"the cells of a run share one outputs folder, found {', '.join(sorted(folders)) or 'none'}")
    outputs = Path(folders.pop())
    rows: list[Row] = []
    found: dict[str, tuple[Node, ScaleConfig, list[int]]] = {}
    for number, config in enumerate(configs):
        nodes: list[Node] = []
        error = None
        left_out = excluded(config)
        try:
            nodes = cell_of(config).nodes() if left_out is None else []
        except (ValueError, OSError, ImportError) as raised:
            error = raised
        for node in nodes:
            found.setdefault(node.key, (node, config.scale, []))[2].append(number)
        rows.append(Row(describe(config), config, tuple(node.key for node in nodes), left_out, error))
    rehearsal = read_rehearsal(outputs, configs[0].scale.name, machine)
    rates = {one.kind: one for one in rehearsal.rates} if rehearsal else {}
    clock = Clock(outputs, machine, rehearsed=rates)
    tasks = {key: _task(node, scale, tuple(needed), clock) for key, (node, scale, needed) in found.items()}
    return Graph(rows, tasks, outputs)


def _task(node: Node, scale: ScaleConfig, rows: tuple[int, ...], clock: Clock) -> Task:
    size = ModelSize(scale.size, scale.dtype)
    need = node.spec.estimate(node, size)
    own = node.spec.resources(node, size) if node.spec.resources else Resources(memory_gb=need.memory_gb)
    resources = getattr(scale.resources, node.stage).over(own)
    there = is_made(node, clock.outputs)
    scratch = need.scratch_gb + resources.on(clock.machine).mapped_gb
    if rate := clock.rehearsed.get(kind_of(node)):
        resources = _corrected(resources, node.stage, rate)
    return Task(node, rows, resources, clock.seconds(node, size, resources), need.disk_gb, scratch, there)


def _corrected(resources: Resources, stage: str, rate: StageRate) -> Resources:
    """Host memory by what a rehearsal held beyond its own account.

    Of stages that hold whole models that grows with the model; of those that stream layers, whose width is the
    rehearsal's too, it is the same.
    """
    beyond = rate.memory_gb - rate.planned_memory_gb
    if beyond <= 0 or rate.planned_memory_gb <= 0:
        return resources
    if stage in _WHOLE:
        beyond *= resources.anywhere_gb / rate.planned_memory_gb
    return dataclasses.replace(resources, memory_gb=resources.memory_gb + beyond)
