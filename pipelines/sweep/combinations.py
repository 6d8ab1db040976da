"""Cells that no product of options gives: the lines of overrides in `experiment.cells` of an experiment file.

A line is written as on the command line, and one with several values stands for all their combinations, by Hydra's own
grammar. The sweep is over `experiment.cell`, the number of a combination:

    hydra: {sweeper: {params: {experiment.cell: "${cell_numbers:${experiment.cells}}"}}}

The job of a number composes its configuration again, with the combination's overrides after the user's.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from pipelines.config import Config
from pipelines.places import plain_name


def register_resolvers() -> None:
    """Makes what conf/ computes known.

    `${cell_numbers:LINES}` is the numbers of all combinations, as a sweep of Hydra's: `0,1,2`.
    `${plain_name:NAME}` is the name, refused if it would lead out of the folder that is called so.
    """
    OmegaConf.register_new_resolver("cell_numbers", lambda lines: _numbers(list(lines)), replace=True)
    OmegaConf.register_new_resolver(
        "plain_name", lambda name: plain_name(str(name), "name of a scale or experiment"), replace=True
    )


def _numbers(lines: list[str]) -> str:
    return ",".join(str(number) for number in range(len(expand(lines))))


def expand(lines: list[str]) -> list[list[str]]:
    """The combinations that the lines stand for, each a list of overrides, in order.

    Raises:
        hydra.errors.OverrideParseException: a line that is no override.
    """
    parser = OverridesParser.create()
    combinations: list[list[str]] = []
    for line in lines:
        for batch in BasicSweeper.split_arguments(parser.parse_overrides(line.split()), None):
            combinations += batch
    return combinations


def own_overrides(config: Config) -> str:
    """The overrides that make this cell what it is, empty for a cell that has none of its own."""
    experiment = config.experiment
    return "" if experiment.cell is None else " ".join(_combination(experiment.cells, experiment.cell))


def cell_overrides(composed: DictConfig) -> list[str]:
    """The overrides that a composed job is composed with again, none where it has no cell of its own."""
    number = composed.experiment.cell
    return [] if number is None else _combination(list(composed.experiment.cells), number)


def _combination(lines: list[str], number: int) -> list[str]:
    combinations = expand(lines)
    if not 0 <= number < len(combinations):
        raise ValueError(f"experiment.cell={number}: the experiment has cells 0 to {len(combinations) - 1}")
    return combinations[number]
