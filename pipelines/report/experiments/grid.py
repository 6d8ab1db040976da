"""The grid search: every setting of each merging method on validation data, the best of each, and HARC's α.

`best_settings` and `best_alpha` are what the file of tuned settings is written from.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pipelines.record import CellRecord
from pipelines.report.figures.dots import Dot, DotPanel, dots_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import Content, Fact, Sweep, report
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.points import dot_of
from pipelines.report.tables.table import Column, Row, Table
from pipelines.sweep.tuned import FILE, tuned_text

BEST = "best"


@report("grid")
def grid(sweep: Sweep) -> Content:
    """A row a setting, in the sweep's order, a method's together, HARC's last; what is chosen is marked."""
    searched = searched_keys(sweep.cells)
    order = list(dict.fromkeys(cell.row.method for cell in sweep.cells))
    cells = sorted(sweep.cells, key=lambda cell: (cell.calibrated, order.index(cell.row.method)))
    keys = [Column("method", "Method", kind="key"), Column("setting", "Setting", kind="key")]
    table = setting_table(cells, keys, [], lambda cell: _key(cell, searched), baseline_of=lambda key: None)
    table.keys.append(Column("chosen", "Chosen", kind="key"))
    # No bold over all methods: the best of each is marked instead.
    table.columns = [dataclasses.replace(column, best=None) for column in table.columns]
    alpha = best_alpha(cells)
    best = {id(cell) for cell in _best_cells(cells).values()}
    best |= {id(cell) for cell in cells if cell.calibrated and cell.setting("calibrate.alpha") == alpha}
    for row in table.rows:
        row.key = (*row.key, BEST if id(row.cell) in best else "–")
    facts = [Fact(f"{row.key[0]}: {row.key[1]}", f"{row.values['overall']:.2f} %", "best of its settings on validation")
             for row in table.rows if row.key[2] == BEST and row.key[1] != _text({}) and not row.harc]  # fmt: skip
    means = _means_by_alpha(cells)
    if alpha is not None:
        facts.append(Fact(f"HARC: alpha {alpha:g}", f"{100 * means[alpha]:.2f} %", "best mean over the merges"))
    pictures = [_picture(table, sweep.scale)] if table.accuracies else []
    content = Content(table, pictures, [], facts, notes(sweep, table))
    content.notes.append(
        "Measured on validation data, which shares no problem with the test. The best of a method has the highest "
        "overall accuracy, of equals the first; its lead is not tested."
    )
    if means:
        listed = "; ".join(f"{one:g}: {100 * mean:.2f} %" for one, mean in means.items())
        content.notes.append(
            f"HARC's α is one for all merges, each with its settings before tuning: the highest mean of their overall "
            f"accuracies ({listed})."
        )
    measured = {task.domain for cell in cells for task in cell.tasks.values()}
    if unmeasured := [name for name in cells[0].setting("domains") if measured and name not in measured]:
        content.notes.append(
            f"{', '.join(unmeasured).capitalize()} has no validation data whose answers can be judged, and no part in "
            "the choice."
        )
    content.notes.append(
        f"{FILE}, beside this page, holds the best settings: other experiments take it with tuned=PATH."
    )
    content.files[FILE] = tuned_text(sweep.scale, list(cells[0].setting("domains")), best_settings(cells), alpha)
    return content


def best_settings(cells: Sequence[CellRecord]) -> dict[str, dict[str, Any]]:
    """Method (`merge.method`) -> its searched settings with the best overall accuracy; of equals the first in order.

    A method none of whose cells has a result is left out.
    """
    searched = searched_keys(cells)
    return {method: _setting(cell, searched) for method, cell in _best_cells(cells).items()}


def best_alpha(cells: Sequence[CellRecord]) -> float | None:
    """HARC's α with the highest mean overall accuracy over the merges; of equals the first; None if none was tried."""
    means = _means_by_alpha(cells)
    return max(means, key=lambda one: means[one]) if means else None


def _means_by_alpha(cells: Sequence[CellRecord]) -> dict[float, float]:
    """α -> the mean over the merges that have a result for every α."""
    found: dict[float, dict[str, float]] = {}
    for cell in cells:
        if cell.calibrated:
            values = found.setdefault(cell.setting("calibrate.alpha"), {})
            if (value := _overall(cell)) is not None:
                values[cell.merge] = value
    shared = set.intersection(*map(set, found.values())) if found else set()
    return {one: fmean(values[name] for name in shared) for one, values in found.items()} if shared else {}


def searched_keys(cells: Sequence[CellRecord]) -> dict[str, list[str]]:
    """Method -> the keys of its configuration that take more than one value in these cells."""
    values: dict[str, dict[str, list[Any]]] = {}
    for cell in cells:
        if cell.calibrated:
            continue
        for key, value in cell.setting("merge").items():
            found = values.setdefault(cell.merge, {}).setdefault(key, [])
            if value not in found:
                found.append(value)
    return {
        method: [key for key, found in keys.items() if len(found) > 1 and key not in ("method", "label", "published")]
        for method, keys in values.items()
    }


def _key(cell: CellRecord, searched: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    if cell.calibrated:
        return "HARC", f"alpha {cell.setting('calibrate.alpha'):g} on {cell.row.method}"
    return cell.row.method, _text(_setting(cell, searched))


def _setting(cell: CellRecord, searched: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {key: cell.setting(f"merge.{key}") for key in searched[cell.merge]}


def _best_cells(cells: Sequence[CellRecord]) -> dict[str, CellRecord]:
    best: dict[str, tuple[float, CellRecord]] = {}
    for cell in cells:
        value = None if cell.calibrated else _overall(cell)
        if value is not None and (cell.merge not in best or value > best[cell.merge][0]):
            best[cell.merge] = (value, cell)
    return {method: cell for method, (_, cell) in best.items()}


def _overall(cell: CellRecord) -> float | None:
    """Mean over domains of the mean over benchmarks, as everywhere; None for a cell without a result."""
    if cell.status != "ok" or not cell.tasks:
        return None
    domains: dict[str, list[float]] = {}
    for task in cell.tasks.values():
        domains.setdefault(task.domain, []).append(task.accuracy)
    means = [sum(values) / len(values) for values in domains.values()]
    return sum(means) / len(means)


def _text(setting: Mapping[str, Any]) -> str:
    if not setting:
        return "as it is"
    return ", ".join(f"{key} {_value(value)}" for key, value in setting.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "/".join(f"{one:g}" for one in value.values())
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _picture(table: Table, scale: str) -> Picture:
    def dot(row: Row, first: bool) -> Dot:
        label = row.key[1] if not first else f"{row.key[0]}: {row.key[1]}"
        best = row.key[2] == BEST
        shown = dot_of(row, "overall", label, filled=best)
        return dataclasses.replace(shown, mark=BEST if best else "", strong=best)

    firsts = {row.key[0]: i for i, row in reversed(list(enumerate(table.rows)))}
    dots = [dot(row, firsts[row.key[0]] == i) for i, row in enumerate(table.rows)]
    return dots_plot(
        "figure", [DotPanel("", "Overall validation accuracy (%)", dots)], title="Validation accuracy by setting",
        caption="Every setting of each merging method; filled and marked: the best of a method. Bars are 95 % "
        "bootstrap intervals over the validation problems.",
        scale=scale,
    )  # fmt: skip
