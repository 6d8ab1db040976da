"""A sweep whole: the cells that its experiment asked for, and a stand-in for each that left no record."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from pipelines.record import CellRecord
from pipelines.report.tables.rows import NEVER_MADE
from pipelines.sweep.combinations import expand


def whole_sweep(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """The cells, in the order of `experiment.cells` where the experiment has such lines.

    A cell of these lines without a record becomes one of status `missing`. Its configuration is that of a cell which
    has overrides of the same keys and the same options, with the missing cell's own values; where there is none,
    nothing is known of it and it is left out.
    """
    lines = _experiment(cells[0]).get("cells") if cells else None
    known: dict[int, CellRecord] = {_experiment(cell)["cell"]: cell for cell in cells if "cell" in _experiment(cell)}
    if not lines or None in known or len(known) < len(cells):
        return list(cells)
    wanted = [_values(own) for own in expand(list(lines))]
    whole = {i: known.get(i) or _missing(i, wanted, known) for i in sorted({*known, *range(len(wanted))})}
    return [cell for cell in whole.values() if cell is not None]


def _experiment(cell: CellRecord) -> dict[str, Any]:
    found: dict[str, Any] = cell.config.get("experiment") or {}
    return found


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """`calibrate=harc calibrate.alpha=0.1` as a mapping; options are the keys without a point."""
    return {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(list(overrides))}


def _missing(number: int, wanted: list[dict[str, Any]], known: dict[int, CellRecord]) -> CellRecord | None:
    def options(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if "." not in key}

    own = wanted[number]
    like = [
        cell for i, cell in known.items() if wanted[i].keys() == own.keys() and options(wanted[i]) == options(own)
    ]  # fmt: skip
    if not like:
        return None
    config = like[0].config
    for key, value in own.items():
        if "." in key:
            config = _changed(config, key.split("."), value)
    config = _changed(config, ["experiment", "cell"], number)
    return CellRecord(
        **{name: getattr(like[0], name) for name in _IDENTITY},
        status="missing",
        error=NEVER_MADE,
        overrides=[f"experiment.cell={number}"],
        config=config,
    )


_IDENTITY = ("experiment", "scale", "row", "merge", "calibrate", "swap", "sft", "seed", "repair", "target", "versions")


def _changed(config: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy with one value changed."""
    inside = value if len(path) == 1 else _changed(config.get(path[0]) or {}, path[1:], value)
    return {**config, path[0]: inside}
