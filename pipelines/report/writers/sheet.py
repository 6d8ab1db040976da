"""sheet.html: one self-contained page of what a tool found out about a model: verdict, findings, figures, tables.

The look and the sorting are those of a report's page (report.css, report.js); the structure is in sheet.html.jinja.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipelines.report.figures.style import Picture, draw_svg, themed_svg
from pipelines.report.registry import Fact

_PACKAGE = __package__


@dataclass(frozen=True)
class Point:
    """One finding. tone: good, half, bad or open; label: in a word; text: in words; more: places, one a line."""

    tone: str
    label: str
    text: str
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Grid:
    """A table. heads: of its columns, the first is of words; rows: as printed; notes: below it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """What a page shows. tool: its name; good: tone of the verdict; models: (what, path); files: beside the page."""

    tool: str
    title: str
    good: bool | None
    verdict: str
    models: Sequence[tuple[str, str]]
    facts: Sequence[Fact] = ()
    points: Sequence[Point] = ()
    pictures: Sequence[Picture] = ()
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    files: Sequence[str] = field(default_factory=list)


def render_sheet(sheet: Sheet) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["whole"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    return environment.from_string(_asset("sheet.html.jinja")).render(
        sheet=sheet,
        css=Markup(_asset("report.css")),
        js=Markup(_asset("report.js")),
        pictures=[(one, Markup(themed_svg(one, draw_svg(one)))) for one in sheet.pictures],
    )


def _asset(name: str) -> str:
    return (resources.files(_PACKAGE) / name).read_text(encoding="utf-8")
