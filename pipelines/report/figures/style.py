"""The look of figures: one colour a method everywhere, one style file, PNG, and SVG that follows a page's theme.

Colours are Okabe and Ito's, told apart under every common colour blindness and dark enough for a light page as they are
light enough for a dark one; what a colour says is always said by a label or a line style too.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

INK, MUTED, GRID, PAPER = "#24292e", "#6e7780", "#d8dee4", "#ffffff"
_THEME = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--surface"}
COLOURS = {
    "Weight Averaging": "#0072b2",
    "TIES-Merging": "#d98c00",
    "DARE": "#009e73",
    "WUDI-Merging": "#d55e00",
    "Fisher Merging": "#cc79a7",
    "RegMean": "#3d9fd6",
    "Task Arithmetic": "#9a8a00",
    "SCE": "#8b6bd6",
    "DELLA": "#a05a2c",
    "Individual": MUTED,
    "Data-free": MUTED,
    "HARC": INK,
}
DOMAINS = {"math": "#0072b2", "code": "#d55e00", "chat": "#009e73"}
_SPARE = ["#5f6caf", "#7a8b3c", "#b5547c", "#2a8f8f"]


def colour(method: str) -> str:
    """The method's colour, the same in every figure; an unknown method gets one of a few spare ones by its name."""
    plain = method.partition(" [")[0]
    return COLOURS.get(plain) or _SPARE[sum(map(ord, plain)) % len(_SPARE)]


def page_colour(value: str) -> str:
    """A colour of the figures as a page writes it: those that follow its theme by their name there."""
    return f"var({_THEME[value]})" if value in _THEME else value


@dataclass
class Picture:
    """A figure of a report. name: of its files (`figure`, `figure_routing_kl`). caption: in the page, under it."""

    name: str
    canvas: Canvas
    title: str
    caption: str
    tips: dict[str, str]


@contextmanager
def figure_style() -> Iterator[None]:
    """Within it, matplotlib draws in the project's style (and without a window)."""
    with matplotlib.rc_context():
        matplotlib.style.use(str(resources.files(__package__) / "harc.mplstyle"))
        yield


def new_canvas(width: float, height: float) -> Canvas:
    """An empty figure, in inches, that belongs to no window and need not be closed."""
    canvas = Canvas(figsize=(width, height))
    FigureCanvasAgg(canvas)
    return canvas


def draw_svg(picture: Picture) -> str:
    """The figure as SVG, the same text for the same figure; its layout is found once and kept for other formats."""
    buffer = io.StringIO()
    with figure_style():
        picture.canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        picture.canvas.set_layout_engine("none")
    return buffer.getvalue()


def draw_png(picture: Picture) -> bytes:
    """The figure as PNG, 300 dots an inch."""
    buffer = io.BytesIO()
    with figure_style():
        picture.canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def themed_svg(picture: Picture, svg: str) -> str:
    """A drawn figure as an element of a page: the page's colours, and a tooltip on each named mark."""
    text = theme(svg, picture.name)
    for mark, tip in picture.tips.items():
        opening = f'<g id="{picture.name}-{mark}">'
        text = text.replace(opening, f"{opening}<title>{html.escape(tip)}</title>", 1)
    label = html.escape(f"{picture.title}. {picture.caption}", quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def theme(svg: str, prefix: str) -> str:
    """A drawn SVG file as an element of a page: no outside names, ids with a prefix, the page's colours, any width."""
    text = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    # A picture's ids must not meet another's on the same page.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for value, name in _THEME.items():
        text = text.replace(value, f"var({name})")
    width = float(re.findall(r'width="([\d.]+)pt"', text)[0])
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg style="--w:{width:.0f}"', 1)
