"""A plot shape: lines with interval bands over a setting, a layer or a measured value, in one or more panels.

Serves sweeps along an axis (α, β, share of the data, layers calibrated), curves by layer, and histograms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipelines.report.figures.dots import Level
from pipelines.report.figures.style import INK, MUTED, PAPER, Picture, colour, figure_style, new_canvas


@dataclass(frozen=True)
class Series:
    """One line. y: None is a marked gap. low, high: interval of each value. dashed, hollow: as merged.

    step: bars of a histogram, x their left edges. spread: further values at an x (seeds), drawn as small ticks.
    """

    label: str
    method: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    dashed: bool = False
    step: bool = False
    spread: Sequence[Sequence[float]] = field(default_factory=tuple)


@dataclass(frozen=True)
class LinePanel:
    """Lines over one x axis. levels: lines across. ticks: values to mark on the x axis, as text if given as pairs."""

    title: str
    axis: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    log: bool = False
    whole: bool = False
    ticks: Sequence[tuple[float, str]] = ()


def lines_plot(
    name: str,
    panels: Sequence[LinePanel],
    *,
    title: str,
    caption: str,
    axis: str,
    scale: str,
    columns: int = 2,
    zero: bool = False,
) -> Picture:
    """Panels of lines with a common y axis.

    Args:
        name: of the files.
        panels: from left to right, then down.
        title: in words, for the page and for people who cannot see it.
        caption: what the lines mean.
        axis: label of the y axis, with its unit.
        scale: name of the scale, printed on the figure.
        columns: panels side by side.
        zero: whether the y axis begins at zero.
    """
    tips: dict[str, str] = {}
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with figure_style():
        canvas = new_canvas(3.5, 0.7 + (1.75 if rows == 1 else 1.35) * rows)
        grid = canvas.subplots(rows, columns, sharey=True, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i < len(panels):
                tips |= _panel(axes, i, panels[i], titled=len(panels) > 1)
            else:
                axes.set_visible(False)
        if zero:
            grid[0, 0].set_ylim(0, 1.04 * grid[0, 0].get_ylim()[1])
        canvas.supylabel(axis, fontsize=8)
        canvas.supxlabel(f"scale: {scale}", fontsize=7, color=MUTED)
        _legend(canvas, panels)
    return Picture(name, canvas, title, caption, tips)


def _panel(axes: Axes, number: int, panel: LinePanel, *, titled: bool) -> dict[str, str]:
    tips: dict[str, str] = {}
    if titled:
        axes.set_title(panel.title, color=INK)
    if panel.log:
        axes.set_xscale("log")
    for level in panel.levels:
        shade = colour(level.method)
        axes.axhspan(level.value - level.half, level.value + level.half, color=shade, alpha=0.1, linewidth=0, zorder=0)
        axes.axhline(level.value, color=shade, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    for i, series in enumerate(panel.series):
        tips |= _line(axes, f"line-{number}-{i}", series)
    if panel.ticks:
        axes.set_xticks([value for value, _ in panel.ticks], [text for _, text in panel.ticks])
        axes.minorticks_off()
    elif not panel.log:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.whole))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(panel.axis)
    return tips


def _line(axes: Axes, mark: str, series: Series) -> dict[str, str]:
    shade = colour(series.method)
    y = [math.nan if value is None else value for value in series.y]
    style = (0, (3, 1.5)) if series.dashed else "-"
    known = [value for value in y if not math.isnan(value)]
    if not known:
        axes.annotate(f"{series.label}: no result", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center",
                      color=MUTED, fontsize=7, style="italic")  # fmt: skip
        return {}
    if series.step:
        axes.plot(series.x, y, color=shade, linestyle=style, drawstyle="steps-post", linewidth=1.2, gid=mark)
        axes.fill_between(series.x, y, step="post", color=shade, alpha=0.14, linewidth=0)
        return {mark: series.label}
    if series.low and series.high:
        for x, low, high in zip(series.x, series.low, series.high, strict=True):
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=shade, linewidth=1.1, alpha=0.55, zorder=2)
    for x, values in zip(series.x, series.spread, strict=False):
        axes.plot([x] * len(values), values, "_", color=shade, markersize=5, markeredgewidth=0.9, zorder=2)
    axes.plot(series.x, y, color=shade, linestyle=style, gid=mark, linewidth=1.3 if series.dashed else 1.5, zorder=3)
    if len(y) <= 12:
        axes.plot(series.x, y, "o", color=shade, markerfacecolor=PAPER if series.dashed else shade,
                  markeredgewidth=1.1, markersize=4, zorder=4)  # fmt: skip
    for x, value in zip(series.x, y, strict=True):
        if math.isnan(value):
            axes.annotate("no result", (x, 0.03), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                          rotation=90, color=MUTED, fontsize=6.5, style="italic")  # fmt: skip
    points = ", ".join(f"{x:g}: {value:.4g}" for x, value in zip(series.x, y, strict=True) if not math.isnan(value))
    return {mark: f"{series.label} ({points})" if len(known) <= 12 else series.label}


def _legend(canvas, panels: Sequence[LinePanel]) -> None:
    handles: dict[str, Line2D] = {}
    for panel in panels:
        for one in panel.series:
            style: Any = (0, (3, 1.5)) if one.dashed else "-"
            marker = "" if one.step or len(one.y) > 12 else "o"
            handles.setdefault(
                one.label,
                Line2D([], [], color=colour(one.method), linestyle=style, linewidth=1.4, marker=marker, markersize=4,
                       markerfacecolor=PAPER if one.dashed else colour(one.method), label=one.label),
            )  # fmt: skip
        for level in panel.levels:
            line = Line2D([], [], color=colour(level.method), linewidth=1, linestyle=(0, (4, 2)), label=level.label)
            handles.setdefault(level.label, line)
    if handles:
        canvas.legend(handles=list(handles.values()), loc="outside upper right", ncols=2, borderaxespad=0,
                      columnspacing=1.2)  # fmt: skip
