"""From a composed configuration to the chain of stages of its cell.

A cell is a merge (or the sources, or the base), perhaps calibrated, given other routers or tuned on, then diagnosed and
evaluated. Stages are shared by key: two cells that merge alike have the same merge node.
"""

import dataclasses
from dataclasses import dataclass, field

from pipelines.chain.nodes import NodeBuilder
from pipelines.config import Config
from pipelines.config.merging import UNMERGED
from pipelines.runner.stage import Node
from pipelines.stages.calibrate import HarcConfig
from pipelines.stages.repair import RepairConfig
from pipelines.stages.router_sft import RouterSftConfig


@dataclass(frozen=True)
class Cell:
    """The stages of one row: what is evaluated, and what its numbers come from.

    evaluations: one evaluate node a model; a merged cell has one, individual sources and swapped routers one a domain.
    diagnosed_before: routing of the merge that was calibrated, the same stage as its uncalibrated row's.
    calibrated_beside: the calibration of a smaller merge, see ExperimentConfig.beside.
    costs: name of a stage -> the cost stage that measures it.
    """

    config: Config
    evaluations: list[Node] = field(default_factory=list)
    merged: Node | None = None
    calibrated: Node | None = None
    calibrated_beside: Node | None = None
    diagnosed: Node | None = None
    diagnosed_before: Node | None = None
    costs: dict[str, Node] = field(default_factory=dict)
    columns: dict[str, tuple[str, str]] = field(default_factory=dict)

    def nodes(self) -> list[Node]:
        """All stages in an order in which they can be made, each once."""
        single = (self.calibrated or self.merged, self.calibrated_beside, self.diagnosed_before, self.diagnosed)
        ends = [*(node for node in single if node), *self.costs.values(), *self.evaluations]
        return list({node.identity: node for end in ends for node in end.chain()}.values())


def row_of(config: Config) -> dict[str, str]:
    """The labels of the cell's row in a table."""
    name = config.merge.label
    if config.swap == "source":
        name += " with the source's routers"
    elif config.swap == "decisions":
        name += " with the source's decisions"
    elif config.swap == "merged":
        name = f"Sources with the routers of {name}"
    name += " + repair" * (config.calibrate.method == "repair")
    name += " + router SFT" * (config.calibrate.method == "router_sft") + " + SFT" * config.sft
    if isinstance(config.calibrate, HarcConfig) and config.calibrate.control != "none":
        name += f" ({config.calibrate.control} control)"
    return {"method": name, "harc": "yes" if config.calibrate.method == "harc" else "no"}


def cell_of(config: Config) -> Cell:
    """The cell of a composed configuration.

    Raises:
        ValueError: a combination that makes no sense, or that the scale doesn't serve (the message says why).
    """
    builder = NodeBuilder(config)
    _check(config, builder)
    if config.merge.method in UNMERGED:
        return _unmerged(config, builder)
    merged = builder.merge()
    if config.swap is not None:
        return Cell(config, _swapped(config, builder, merged), merged, columns=builder.columns())
    model, calibrated, before, beside = merged, None, None, None
    if isinstance(config.calibrate, HarcConfig | RepairConfig | RouterSftConfig):
        model = calibrated = builder.calibrate(merged, config.calibrate)
        before = builder.diagnose(merged)
        beside = _beside(config, config.calibrate) if isinstance(config.calibrate, HarcConfig) else None
    if config.sft:
        model = builder.sft(model)
    measured = [node for node in (merged, calibrated) if node] if config.cost_repeats else []
    return Cell(
        config,
        builder.evaluate(model.label, model, None, list(builder.domains)),
        merged,
        calibrated,
        beside,
        builder.diagnose(model),
        before,
        {node.stage: builder.cost(node) for node in measured},
        builder.columns(),
    )


def _unmerged(config: Config, builder: NodeBuilder) -> Cell:
    scale = config.scale.name
    names = list(builder.domains)
    if config.merge.method == "base":
        nodes = builder.evaluate(f"{scale}-base", builder.base.get("base"), builder.base_id, names)
    else:
        nodes = [
            node
            for name in names
            for node in builder.evaluate(f"{scale}-{name}", builder.sources.get(name), builder.source_ids[name], [name])
        ]
    return Cell(config, nodes, columns=builder.columns())


def _swapped(config: Config, builder: NodeBuilder, merged: Node) -> list[Node]:
    """Each domain's swapped model, on that domain."""
    nodes = []
    for name in builder.domains:
        if config.swap == "decisions":
            nodes += builder.replay(merged, name)
            continue
        model = builder.with_source_routers(merged, name) if config.swap == "source" else None
        model = model or builder.with_merged_routers(merged, name)
        nodes += builder.evaluate(model.label, model, None, [name])
    return nodes


def _beside(config: Config, harc: HarcConfig) -> Node | None:
    beside = config.experiment.beside
    if not beside or beside == list(config.domains):
        return None
    builder = NodeBuilder(dataclasses.replace(config, domains=beside))
    return builder.calibrate(builder.merge(), harc)


def _check(config: Config, builder: NodeBuilder) -> None:
    merge = config.merge.method
    if merge in UNMERGED:
        chosen = {"calibrate": config.calibrate.method != "none", "swap": config.swap, "sft": config.sft}
        if wrong := [name for name, value in chosen.items() if value]:
            raise ValueError(f"merge={merge} has no merged model: leave out {', '.join(wrong)}")
    elif len(builder.domains) < 2:
        raise ValueError(f"merging takes at least two domains, found domains={list(builder.domains)}")
    if config.swap is not None and (config.calibrate.method != "none" or config.sft):
        raise ValueError(f"swap={config.swap} replaces the routers: use it with calibrate=none and sft=false")
    if config.evaluate.tasks is None:
        return
    columns = builder.columns()
    valid = {*columns, *(task for _, task in columns.values())}
    unknown = [name for name in config.evaluate.tasks if name not in valid]
    if unknown:
        raise ValueError(f"evaluate.tasks: unknown {', '.join(unknown)}; valid are {', '.join(sorted(columns))}")
    if not config.evaluate.tasks and (merge in UNMERGED or config.swap):
        raise ValueError(f"merge={merge} without tasks leaves nothing to measure: evaluate.tasks is empty")
