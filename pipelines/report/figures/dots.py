"""A plot shape: values with intervals as dots in labelled rows, in one or more panels that share the rows.

Serves comparisons without an order on a numeric axis: router swaps, Hessians, calibration data, costs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipelines.report.figures.style import INK, MUTED, PAPER, Picture, colour, figure_style, new_canvas


@dataclass(frozen=True)
class Dot:
    """One row of a panel. value None: a marked gap. low, high: its interval. mark: at the right, bold if strong."""

    label: str
    method: str
    value: float | None
    low: float | None = None
    high: float | None = None
    filled: bool = True
    marker: str = "o"
    mark: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Level:
    """A line across a panel, with its half-width as a band: an uncalibrated level, a bound."""

    label: str
    method: str
    value: float
    half: float = 0.0


@dataclass(frozen=True)
class DotPanel:
    """Dots from top to bottom; axis: label of the x axis with its unit."""

    title: str
    axis: str
    dots: Sequence[Dot]
    level: Level | None = None
    zero: bool = False


def dots_plot(
    name: str,
    panels: Sequence[DotPanel],
    *,
    title: str,
    caption: str,
    scale: str,
    columns: int = 2,
    shared: bool = False,
    width: float = 3.5,
) -> Picture:
    """Panels of dots with intervals; all panels have the same rows.

    Args:
        name: of the files.
        panels: each with the same labels in the same order.
        title: in words, for the page and for people who cannot see it.
        caption: what the marks mean.
        scale: name of the scale, printed on the figure.
        columns: panels side by side.
        shared: whether the panels of a column share their x axis.
        width: of the figure, in inches; more where labels are long.
    """
    tips: dict[str, str] = {}
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 0.62 + 0.24 * max(len(panel.dots) for panel in panels)
    with figure_style():
        canvas = new_canvas(width, rows * height + 0.3)
        grid = canvas.subplots(rows, columns, sharex="col" if shared else "none", sharey=True, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i < len(panels):
                tips |= _panel(axes, i, panels[i], alone=len(panels) == 1)
            else:
                axes.set_visible(False)
        _legend(canvas, panels)
        canvas.supxlabel(f"scale: {scale}", fontsize=7, color=MUTED)
    return Picture(name, canvas, title, caption, tips)


def _panel(axes: Axes, number: int, panel: DotPanel, *, alone: bool) -> dict[str, str]:
    tips: dict[str, str] = {}
    axes.grid(False, axis="y")
    if not alone:
        axes.set_title(panel.title, color=INK)
    if panel.level:
        shade = colour(panel.level.method)
        axes.axvspan(panel.level.value - panel.level.half, panel.level.value + panel.level.half, color=shade,
                     alpha=0.12, linewidth=0, zorder=0)  # fmt: skip
        axes.axvline(panel.level.value, color=shade, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    for i, dot in enumerate(panel.dots):
        tips |= _dot(axes, f"mark-{number}-{i}", i, dot)
    axes.set_yticks(range(len(panel.dots)), [dot.label for dot in panel.dots])
    axes.set_ylim(len(panel.dots) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4 if not alone else 6))
    if panel.zero:
        ends = [value for dot in panel.dots for value in (dot.value, dot.high) if value is not None]
        axes.set_xlim(0, 1.06 * max(ends, default=1.0))
    axes.set_xlabel(panel.axis)
    return tips


def _dot(axes: Axes, mark: str, i: int, dot: Dot) -> dict[str, str]:
    if dot.mark:
        axes.annotate(dot.mark, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                      color=INK if dot.strong else MUTED, weight="bold" if dot.strong else "normal")  # fmt: skip
    if dot.value is None:
        axes.annotate("no result", (0.5, i), xycoords=("axes fraction", "data"), ha="center", va="center", color=MUTED,
                      fontsize=7, style="italic")  # fmt: skip
        return {}
    shade = colour(dot.method)
    if dot.low is not None and dot.high is not None:
        axes.plot([dot.low, dot.high], [i, i], color=shade, linewidth=1.1, alpha=0.65, zorder=2)
    axes.plot([dot.value], [i], dot.marker, color=shade, markerfacecolor=shade if dot.filled else PAPER,
              markeredgewidth=1.2, markersize=5, gid=mark, zorder=3)  # fmt: skip
    reach = "" if dot.low is None or dot.high is None else f" [{dot.low:.4g}, {dot.high:.4g}]"
    return {mark: f"{dot.label.strip()}: {dot.value:.4g}{reach}"}


def _legend(canvas, panels: Sequence[DotPanel]) -> None:
    level = next((panel.level for panel in panels if panel.level), None)
    if level:
        line = Line2D([], [], color=colour(level.method), linewidth=1, linestyle=(0, (4, 2)), label=level.label)
        canvas.legend(handles=[line], loc="outside upper right", borderaxespad=0)
