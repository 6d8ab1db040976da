"""`tuned=auto`: +experiment=grid first, over the methods of the cells that wait; its file is then theirs.

The grid is a run of its own, before the cells' graph: which merges these need is known when it has ended. Whatever the
command line says of the world, data and budgets holds for it too; what is measured and how is the grid's own.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from pipelines.config import Config
from pipelines.config.merging import UNMERGED
from pipelines.graph.make import make
from pipelines.sweep.composed import Experiment, experiment_of, master_of
from pipelines.sweep.tuned import AUTO, FILE, apply_tuned

log = logging.getLogger(__name__)

# What a cell is, not the world it lives in.
_OF_THE_CELL = ("experiment", "merge", "merges", "calibrate", "swap", "sft", "tuned", "plan", "larger", "domains",
                "cost_repeats", "routing_text")  # fmt: skip


def grid_of(configs: Sequence[Config], words: Sequence[str]) -> Experiment | None:
    """The grid that has to run before these cells; None where none of them asks for it.

    Args:
        configs: of the cells.
        words: the command line's overrides.

    Raises:
        ValueError: cells of several sets of domains or architectures, each of which would need a grid of its own; or
            cells that merge nothing.
    """
    asking = [config for config in configs if config.tuned == AUTO]
    if not asking:
        return None
    kinds = {(tuple(config.domains), config.larger) for config in asking}
    if len(kinds) > 1:
        raise ValueError(
            f"tuned=auto: the cells differ in domains or architecture ({len(kinds)} kinds), and each kind has a grid "
            "of its own; run +experiment=grid for each, and take its file with tuned=FILE"
        )
    methods = list(dict.fromkeys(c.merge.method for c in asking if c.merge.method not in UNMERGED))
    if not methods:
        raise ValueError("tuned=auto: none of the cells merges anything")
    (domains, larger) = kinds.pop()
    parsed = OverridesParser.create().parse_overrides(list(words))
    kept = [word for word, one in zip(words, parsed, strict=True) if not _of_the_cell(one.key_or_group)]
    own = [f"merges=[{','.join(methods)}]", f"domains=[{','.join(domains)}]", f"larger={str(larger).lower()}"]
    return experiment_of(master_of("grid", [*kept, *own]))


def _of_the_cell(key: str) -> bool:
    measured = key.startswith("evaluate.") and key not in ("evaluate.engine", "evaluate.limit", "evaluate.seed")
    return measured or key.partition(".")[0] in _OF_THE_CELL


def tune(grid: Experiment, configs: Sequence[Config], words: Sequence[Sequence[str]], work: Path) -> list[Config]:
    """Makes the grid and its report; the cells with the settings that it chose.

    Args:
        grid: as `grid_of` gives it.
        configs: of the cells.
        words: of each cell the overrides, which win over the grid's choice.
        work: folder for the engine's own files.

    Raises:
        RuntimeError: a row of the grid has no numbers.
    """
    log.info("tuned=auto: the grid of %d settings comes first", len(grid.jobs))
    making = make([job.config for job in grid.jobs], work / "grid")
    if making.queued:
        raise RuntimeError("tuned=auto: the cells need the grid's choice; wait for the queue with engine.wait=true")
    if not grid.report(making, 0):
        raise RuntimeError("tuned=auto: rows of +experiment=grid have no numbers; its report says which and why")
    return [
        apply_tuned(dataclasses.replace(config, tuned=_file(config)), own) if config.tuned == AUTO else config
        for config, own in zip(configs, words, strict=True)
    ]


def _file(config: Config) -> str:
    from pipelines.report.build import replicate

    return str(Path(config.outputs) / "reports" / f"grid-{replicate(config.scale.name, config.seed)}" / FILE)
