"""report.html: one self-contained page of a report, with its figures, its table, and the configuration that made it.

Everything is inlined and escaped; nothing is fetched. The look is in report.css, sorting in report.js, the structure in
report.html.jinja.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipelines.record import CellRecord, LayerResult, StageRecord
from pipelines.report.figures.style import COLOURS, MUTED, colour, page_colour, themed_svg
from pipelines.report.registry import FAILS, HOLDS, LEANS, Content
from pipelines.report.tables.evidence import NOTES
from pipelines.report.tables.rows import method_label
from pipelines.report.tables.table import Column, Gain, Row, Table, signed
from pipelines.report.writers.formats import compared, three

VERDICTS = {HOLDS: "good", LEANS: "half", FAILS: "bad"}


@dataclass(frozen=True)
class Page:
    """What the page shows. out_root: paths in it are given relative to that folder. drawn: SVG of each picture."""

    experiment: str
    title: str
    heading: str
    scale: str
    content: Content
    cells: Sequence[CellRecord]
    out_root: Path
    drawn: dict[str, str]


@dataclass(frozen=True)
class ShownValue:
    """A number of the table as printed. half: of its interval; mark: up or down for a clear gain; tip: in full."""

    value: float | None
    text: str
    half: str | None
    best: bool
    mark: str
    tip: str


@dataclass(frozen=True)
class ShownRow:
    """A row of the table. cells: its numbers, none for a gap; begins: a group of rows."""

    row: Row
    colour: str
    begins: bool
    cells: list[ShownValue]


@dataclass(frozen=True)
class Strip:
    """A gain, and where it and its ends lie on the strip, from 0 to 100."""

    gain: Gain
    low: float
    high: float
    dot: float


@dataclass(frozen=True)
class Forest:
    """The gains of a table by key of their row; zero: where no gain lies."""

    zero: float
    strips: dict[tuple[str, ...], Strip]


@dataclass(frozen=True)
class CalibratedRow:
    """A calibrated row's solves: a layer's, or None where it was left as it was; seconds: in all."""

    name: str
    layers: list[LayerResult | None]
    seconds: float


@dataclass(frozen=True)
class Calibrations:
    """The solves of all calibrated rows. numbers: the decoder layers that some row calibrated."""

    numbers: list[int]
    rows: list[CalibratedRow]


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
        evidence=page.content.evidence,
        evidence_notes=NOTES,
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


def _rows(table: Table) -> list[ShownRow]:
    shown = [*table.accuracies, *table.measures]
    best = {column.name: table.best(column) for column in shown}
    return [
        ShownRow(
            row,
            _swatch(row),
            table.begins_group(i),
            [_value(row, column, i in best[column.name]) for column in shown] if row.status == "ok" else [],
        )
        for i, row in enumerate(table.rows)
    ]


def _swatch(row: Row) -> str:
    """The colour of the row's method, whatever its key says; muted where no method is known."""
    if row.key[0].partition(" [")[0] in COLOURS or not row.cell:
        return page_colour(COLOURS.get(row.key[0].partition(" [")[0], MUTED))
    return page_colour(colour(method_label(row.cell)))


def _value(row: Row, column: Column, best: bool) -> ShownValue:
    gain = row.gain.get(column.name)
    half = row.ci95.get(column.name)
    return ShownValue(
        value=row.values.get(column.name),
        text=column.text(row.values.get(column.name)),
        half=None if half is None else f"{half:.{column.digits}f}",
        best=best,
        mark="" if gain is None or not gain.clear else "up" if gain.value > 0 else "down",
        tip="" if gain is None else f"{gain.text()} against its baseline, paired 95 %",
    )


def _forest(table: Table) -> Forest | None:
    """Gains in the main column, and where they stand on a strip from 0 to 100 that has room for all and for zero."""
    gains = {row.key: row.gain[table.main] for row in table.rows if table.main in row.gain}
    if not gains:
        return None
    left = min(0.0, *(gain.low for gain in gains.values()))
    width = max(0.0, *(gain.high for gain in gains.values())) - left or 1.0

    def place(value: float) -> float:
        return round(3 + 94 * (value - left) / width, 2)

    strips = {key: Strip(gain, place(gain.low), place(gain.high), place(gain.value)) for key, gain in gains.items()}
    return Forest(place(0.0), strips)


def _outside(row: Row, column: Column) -> str:
    """`up` or `down` when the paper's value lies outside the measured interval."""
    if column.name not in row.values or column.name not in row.paper or column.name not in row.ci95:
        return ""
    difference = row.values[column.name] - row.paper[column.name]
    return "" if abs(difference) <= row.ci95[column.name] else "up" if difference > 0 else "down"


def _configuration(cells: Sequence[CellRecord]) -> tuple[str, list[tuple[str, str]]]:
    """The configuration that all cells share, as YAML, and each row's own overrides."""
    flat = [_flatten(cell.config) for cell in cells if cell.status != "excluded"]
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
        (cell.row.name, " ".join(cell.overrides)) for cell in cells if cell.overrides and cell.status != "excluded"
    ]
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True) if nested else "", overrides


def _flatten(value: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, inside in value.items():
        here = (*above, str(key))
        flat |= _flatten(inside, here) if isinstance(inside, dict) and inside else {here: inside}
    return flat


def _versions(cells: Sequence[CellRecord]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for cell in cells:
        for package, version in cell.versions.items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(found[package])) for package in sorted(found)}


def _stages(cells: Sequence[CellRecord], out_root: Path) -> list[StageRecord]:
    """Every stage once, in the order in which cells name them; made: by this run."""
    stages: dict[tuple[str, str], StageRecord] = {}
    for cell in cells:
        for stage in cell.stages:
            known = stages.setdefault((stage.stage, stage.key), stage)
            path = Path(stage.path)
            short = str(path.relative_to(out_root) if path.is_relative_to(out_root) else path)
            stages[stage.stage, stage.key] = replace(known, made=known.made or stage.made, path=short)
    return list(stages.values())


def _calibrations(table: Table) -> Calibrations | None:
    """Each calibrated row's conjugate gradients by layer; a row that left a layer as it was has a gap there."""
    found: list[tuple[str, dict[int, LayerResult]]] = []
    for row in table.rows:
        calibration = row.cell.calibration if row.cell else None
        if calibration and calibration.layers:
            found.append((row.name, {one.layer: one for one in calibration.layers}))
    if not found:
        return None
    numbers = sorted({number for _, layers in found for number in layers})
    return Calibrations(
        numbers,
        [
            CalibratedRow(
                name, [layers.get(number) for number in numbers], sum(one.seconds or 0 for one in layers.values())
            )
            for name, layers in found
        ],
    )
