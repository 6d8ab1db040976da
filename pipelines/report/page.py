"""report.html: one self-contained page of a report, with its figures, its table, and the configuration that made it.

Everything is inlined and escaped; nothing is fetched. The look is in report.css, sorting in report.js, the structure in
report.html.jinja.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipelines.report.formats import compared, three
from pipelines.report.registry import FAILS, HOLDS, LEANS, Content
from pipelines.report.rows import method_label
from pipelines.report.style import COLOURS, MUTED, colour, page_colour, themed_svg
from pipelines.report.table import Column, Row, Table, signed

VERDICTS = {HOLDS: "good", LEANS: "half", FAILS: "bad"}


@dataclass(frozen=True)
class Page:
    """What the page shows. out_root: paths in it are given relative to that folder. drawn: SVG of each picture."""

    experiment: str
    title: str
    heading: str
    scale: str
    content: Content
    cells: Sequence[dict[str, Any]]
    out_root: Path
    drawn: dict[str, str]


def render_page(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # A number and its unit stay on one line.
    environment.filters["whole"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    template = environment.from_string(_asset("report.html.jinja"))
    table = page.content.table
    common, overrides = _configuration(page.cells)
    return template.render(
        page=page,
        table=table,
        css=Markup(_asset("report.css")),
        js=Markup(_asset("report.js")),
        pictures=[(one, Markup(themed_svg(one, page.drawn[one.name]))) for one in page.content.pictures],
        rows=_rows(table),
        forest=_forest(table),
        compared=compared(table),
        three=three,
        signed=signed,
        outside=_outside,
        verdicts=VERDICTS,
        configuration=common,
        overrides=overrides,
        versions=_versions(page.cells),
        stages=_stages(page.cells, page.out_root),
        calibrations=_calibrations(table),
    )


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _rows(table: Table) -> list[dict[str, Any]]:
    shown = [*table.accuracies, *table.measures]
    best = {column.name: table.best(column) for column in shown}
    return [
        {
            "row": row,
            "colour": _swatch(row),
            "begins": table.begins_group(i),
            "cells": [_cell(row, column, i in best[column.name]) for column in shown] if row.status == "ok" else [],
        }
        for i, row in enumerate(table.rows)
    ]


def _swatch(row: Row) -> str:
    """The colour of the row's method, whatever its key says; muted where no method is known."""
    if row.key[0].partition(" [")[0] in COLOURS or not row.cell:
        return page_colour(COLOURS.get(row.key[0].partition(" [")[0], MUTED))
    return page_colour(colour(method_label(row.cell)))


def _cell(row: Row, column: Column, best: bool) -> dict[str, Any]:
    gain = row.gain.get(column.name)
    half = row.ci95.get(column.name)
    return {
        "value": row.values.get(column.name),
        "text": column.text(row.values.get(column.name)),
        "half": None if half is None else f"{half:.{column.digits}f}",
        "best": best,
        "mark": "" if gain is None or not gain.clear else "up" if gain.value > 0 else "down",
        "tip": "" if gain is None else f"{gain.text()} against its baseline, paired 95 %",
    }


def _forest(table: Table) -> dict[str, Any] | None:
    """Gains in the main column, and where they stand on a strip from 0 to 100 that has room for all and for zero."""
    gains = {row.key: row.gain[table.main] for row in table.rows if table.main in row.gain}
    if not gains:
        return None
    left = min(0.0, *(gain.low for gain in gains.values()))
    width = max(0.0, *(gain.high for gain in gains.values())) - left or 1.0

    def place(value: float) -> float:
        return round(3 + 94 * (value - left) / width, 2)

    strips = {
        key: {"gain": gain, "low": place(gain.low), "high": place(gain.high), "dot": place(gain.value)}
        for key, gain in gains.items()
    }
    return {"zero": place(0.0), "strips": strips}


def _outside(row: Row, column: Column) -> str:
    """`up` or `down` when the paper's value lies outside the measured interval."""
    if column.name not in row.values or column.name not in row.paper or column.name not in row.ci95:
        return ""
    difference = row.values[column.name] - row.paper[column.name]
    return "" if abs(difference) <= row.ci95[column.name] else "up" if difference > 0 else "down"


def _configuration(cells: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
    """The configuration that all cells share, as YAML, and each row's own overrides."""
    flat = [_flatten(cell.get("config") or {}) for cell in cells if cell["status"] != "excluded"]
    shared = (
        {key: value for key, value in flat[0].items() if all(one.get(key, ...) == value for one in flat)}
        if flat
        else {}
    )
    nested: dict[str, Any] = {}
    for key, value in shared.items():
        inside = nested
        for part in key[:-1]:
            inside = inside.setdefault(part, {})
        inside[key[-1]] = value
    overrides = [
        (f"{cell['row']['method']}{' + HARC' if cell['row']['harc'] == 'yes' else ''}", " ".join(cell["overrides"]))
        for cell in cells
        if cell.get("overrides") and cell["status"] != "excluded"
    ]
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True) if nested else "", overrides


def _flatten(value: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, inside in value.items():
        here = (*above, str(key))
        flat |= _flatten(inside, here) if isinstance(inside, dict) and inside else {here: inside}
    return flat


def _versions(cells: Sequence[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for cell in cells:
        for package, version in (cell.get("versions") or {}).items():
            found.setdefault(package, set()).add(str(version))
    return {package: ", ".join(sorted(found[package])) for package in sorted(found)}


def _stages(cells: Sequence[dict[str, Any]], out_root: Path) -> list[dict[str, Any]]:
    """Every stage once, in the order in which cells name them; made: by this run."""
    stages: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        for stage in cell.get("stages") or []:
            known = stages.setdefault((stage["stage"], stage["key"]), dict(stage))
            known["made"] = known["made"] or stage["made"]
            path = Path(stage["path"])
            known["path"] = str(path.relative_to(out_root) if path.is_relative_to(out_root) else path)
    return list(stages.values())


def _calibrations(table: Table) -> dict[str, Any] | None:
    """Each calibrated row's conjugate gradients by layer; a row that left a layer as it was has a gap there."""
    found = []
    for row in table.rows:
        layers = ((row.cell or {}).get("calibration") or {}).get("layers") or []
        if layers:
            found.append((row.name, {one["layer"]: one for one in layers}))
    if not found:
        return None
    numbers = sorted({number for _, layers in found for number in layers})
    rows = [
        {"name": name, "layers": [layers.get(number) for number in numbers],
         "seconds": sum(one.get("seconds") or 0 for one in layers.values())}
        for name, layers in found
    ]  # fmt: skip
    return {"numbers": numbers, "rows": rows}
