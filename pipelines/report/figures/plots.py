"""Shapes of plots that several reports share: a pair of values a method, and curves by layer in small multiples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipelines.report.figures.style import INK, MUTED, PAPER, Picture, colour, figure_style, new_canvas


@dataclass(frozen=True)
class Pair:
    """One method's value without and with calibration, each with a half-width; mark says what to print beside it."""

    method: str
    before: tuple[float, float] | None
    after: tuple[float, float] | None
    mark: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Curves:
    """One method's values by layer, without and with calibration. title: of its panel, by default the method."""

    method: str
    before: Sequence[float] | None
    after: Sequence[float] | None
    title: str = ""


def pairs_plot(
    name: str,
    pairs: Sequence[Pair],
    *,
    title: str,
    caption: str,
    axis: str,
    scale: str,
    reference: tuple[str, float, float] | None = None,
    mark_title: str = "gain",
) -> Picture:
    """Dumbbells: hollow without, filled with HARC, a row a method, intervals as thin bars, a bound as a dashed line.

    Args:
        name: of the files.
        pairs: from top to bottom.
        title: in words, for the page and for people who cannot see it.
        caption: what the marks mean.
        axis: label of the x axis, with its unit.
        scale: name of the scale, printed on the figure.
        reference: name, value and half-width of a bound.
        mark_title: heading of the column of marks at the right.
    """
    tips: dict[str, str] = {}
    with figure_style():
        canvas = new_canvas(3.5, 0.75 + 0.5 * max(len(pairs), 2))
        axes = canvas.add_subplot()
        axes.grid(False, axis="y")
        for i, pair in enumerate(pairs):
            tips |= _dumbbell(axes, i, pair)
        if reference:
            label, value, half = reference
            axes.axvspan(value - half, value + half, color=MUTED, alpha=0.13, linewidth=0, zorder=0)
            axes.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
            axes.annotate(label, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), fontsize=7,
                          textcoords="offset points", ha="center", va="bottom", color=MUTED)  # fmt: skip
        if any(pair.mark for pair in pairs):
            axes.annotate(mark_title, (1.02, 1), xycoords="axes fraction", xytext=(0, 2), textcoords="offset points",
                          fontsize=7, color=MUTED, va="bottom")  # fmt: skip
        axes.set_yticks(range(len(pairs)), [pair.method for pair in pairs])
        axes.set_ylim(len(pairs) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"{axis} · scale: {scale}")
        _legend(canvas)
    return Picture(name, canvas, title, caption, tips)


def _dumbbell(axes: Axes, i: int, pair: Pair) -> dict[str, str]:
    tips = {}
    shade = colour(pair.method)
    for point, offset, filled in ((pair.before, -0.13, False), (pair.after, 0.13, True)):
        if point is None:
            continue
        value, half = point
        if half:
            axes.plot([value - half, value + half], [i + offset] * 2, color=shade, linewidth=0.9, alpha=0.6, zorder=2)
        mark = f"mark-{i}-{int(filled)}"
        axes.plot([value], [i + offset], "o", color=shade, markerfacecolor=shade if filled else PAPER,
                  markeredgewidth=1.2, markersize=5, gid=mark, zorder=4)  # fmt: skip
        tips[mark] = f"{pair.method}{' + HARC' if filled else ''}: {value:.2f}" + (f" ± {half:.2f}" if half else "")
    if pair.before and pair.after:
        axes.plot([pair.before[0], pair.after[0]], [i - 0.13, i + 0.13], color=shade, linewidth=1.6, zorder=3)
    elif not (pair.before or pair.after):
        axes.annotate("no result", (0.5, i), xycoords=("axes fraction", "data"), ha="center", va="center", color=MUTED,
                      fontsize=7, style="italic")  # fmt: skip
    if pair.mark:
        axes.annotate(pair.mark, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                      color=INK if pair.strong else MUTED, weight="bold" if pair.strong else "normal")  # fmt: skip
    return tips


def layers_plot(
    name: str, curves: Sequence[Curves], *, title: str, caption: str, axis: str, scale: str, columns: int = 2
) -> Picture:
    """Small multiples by layer, a panel a method, one y axis for all: dashed without, solid with HARC.

    Args:
        name: of the files.
        curves: a panel each, in order; layers are numbered from 1.
        title: in words.
        caption: what the lines mean.
        axis: label of the y axis, with its unit.
        scale: name of the scale, printed on the figure.
        columns: panels side by side.
    """
    tips: dict[str, str] = {}
    columns = min(columns, max(len(curves), 1))
    rows = max(math.ceil(len(curves) / columns), 1)
    with figure_style():
        canvas = new_canvas(3.5 if columns > 1 else 2.6, 0.75 + (1.0 if rows > 1 else 1.6) * rows)
        panels = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for i, axes in enumerate(panels.flat):
            if i >= len(curves):
                axes.set_visible(False)
                continue
            tips |= _panel(axes, i, curves[i])
        # Room for a marker at the top, which the margin of the values alone does not leave above zero.
        panels[0, 0].set_ylim(0, 1.04 * panels[0, 0].get_ylim()[1])
        canvas.supylabel(axis, fontsize=8)
        canvas.supxlabel(f"MoE layer · scale: {scale}", fontsize=8)
        _legend(canvas, lines=True)
    return Picture(name, canvas, title, caption, tips)


def _panel(axes: Axes, i: int, curves: Curves) -> dict[str, str]:
    tips = {}
    shade = colour(curves.method)
    axes.set_title(curves.title or curves.method, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=2))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    for values, style, harc in ((curves.before, (0, (3, 1.5)), ""), (curves.after, "-", " + HARC")):
        if values is None:
            continue
        mark = f"curve-{i}-{int(bool(harc))}"
        layers = range(1, len(values) + 1)
        axes.plot(layers, values, color=shade, linestyle=style, gid=mark, linewidth=1.6 if harc else 1.3)
        if len(values) <= 6:
            axes.plot(layers, values, "o", color=shade, markerfacecolor=shade if harc else PAPER, markersize=3.6)
        tips[mark] = f"{curves.method}{harc}: mean {sum(values) / len(values):.4g}"
    if curves.before is not None and curves.after is not None and len(curves.before) == len(curves.after):
        axes.fill_between(range(1, len(curves.before) + 1), curves.before, curves.after, color=shade, alpha=0.16, lw=0)
    elif curves.before is None and curves.after is None:
        axes.annotate("no result", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=MUTED,
                      fontsize=7, style="italic")  # fmt: skip
    return tips


def _legend(canvas, *, lines: bool = False) -> None:
    if lines:
        handles = [
            Line2D([], [], color=INK, linestyle=(0, (3, 1.5)), linewidth=1.3, label="as merged"),
            Line2D([], [], color=INK, linewidth=1.6, label="with HARC"),
        ]
    else:
        handles = [
            Line2D([], [], color=INK, marker="o", linestyle="", markerfacecolor=PAPER, label="as merged"),
            Line2D([], [], color=INK, marker="o", linestyle="", label="with HARC"),
        ]
    canvas.legend(handles=handles, loc="outside upper right", ncols=2, borderaxespad=0, columnspacing=1.2)
