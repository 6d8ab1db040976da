"""A plot shape: heat maps, a value a cell in labelled rows and columns, in panels that share one colour scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap

from pipelines.report.figures.style import INK, MUTED, Picture, figure_style, new_canvas

_MOST_NUMBERS = 24  # columns that leave room for a number in each cell
_MOST_LABELS = 16
_SHADES = LinearSegmentedColormap.from_list("heat", ["#eef4fb", "#7fb3e0", "#0b62b8", "#062f5c"])


@dataclass(frozen=True)
class Heat:
    """A panel: values of rows × columns, None where there is none."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


def heat_plot(
    name: str,
    panels: Sequence[Heat],
    *,
    title: str,
    caption: str,
    axis: str,
    rows: str = "",
    columns: str = "",
    high: float | None = None,
    digits: int = 2,
) -> Picture:
    """Heat maps one below the other, light for 0 and dark for much, each as wide as its columns need.

    Args:
        name: of the files.
        panels: from top to bottom.
        title: in words, for the page and for people who cannot see it.
        caption: what the values are.
        axis: label of the colour scale, with its unit.
        rows: what rows are, as the label of the y axis.
        columns: what columns are, as the label of the x axis.
        high: value of the darkest colour, by default the largest.
        digits: of the numbers in cells, where these are few enough to have any.
    """
    arrays = [np.array([[np.nan if v is None else v for v in row] for row in panel.values]) for panel in panels]
    top = (
        high
        if high is not None
        else max((float(np.nanmax(one)) for one in arrays if np.isfinite(one).any()), default=1)
    )
    heights = [max(0.5, 0.22 * len(panel.rows)) for panel in panels]
    widest = max(len(panel.columns) for panel in panels)
    with figure_style():
        names = 0.06 * max(len(row) for panel in panels for row in panel.rows)
        canvas = new_canvas(min(7.2, max(3.5, 1.6 + names + 0.36 * widest)), sum(heights) + 0.75 * len(panels) + 0.2)
        grid = canvas.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        meshes: list[QuadMesh] = []
        for axes, panel, values in zip(grid[:, 0], panels, arrays, strict=True):
            meshes.append(_panel(axes, panel, values, top or 1, digits))
            axes.set_ylabel(rows)
            axes.set_xlabel(columns)
        bar = canvas.colorbar(meshes[0], ax=list(grid[:, 0]), shrink=0.9, pad=0.02, aspect=24)
        bar.set_label(axis)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return Picture(name, canvas, title, caption, {})


def _panel(axes: Axes, panel: Heat, values: np.ndarray, top: float, digits: int) -> QuadMesh:
    axes.grid(False)
    shown = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(shown, cmap=_SHADES, vmin=0, vmax=top, edgecolors="#ffffff", linewidth=0.4)
    axes.set_xlim(0, values.shape[1])
    axes.set_ylim(values.shape[0], 0)
    axes.set_title(panel.title, color=INK)
    step = -(-len(panel.columns) // _MOST_LABELS) if len(panel.columns) > _MOST_NUMBERS else 1
    slanted = max(map(len, panel.columns)) > 4
    axes.set_xticks(
        np.arange(0, len(panel.columns), step) + 0.5,
        list(panel.columns)[::step],
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    every = -(-len(panel.rows) // 24)
    axes.set_yticks(np.arange(0, len(panel.rows), every) + 0.5, list(panel.rows)[::every])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if len(panel.columns) <= _MOST_NUMBERS and len(panel.rows) <= _MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(values):
            if np.isnan(value):
                axes.annotate("–", (j + 0.5, i + 0.5), ha="center", va="center", fontsize=6, color=MUTED)
            else:
                # Fixed colours: the cell's own does not follow the page's theme.
                tint = "#fdfdfd" if value > 0.45 * top else "#101418"
                text = f"{value:.{digits}f}"
                axes.annotate(text, (j + 0.5, i + 0.5), ha="center", va="center", fontsize=6, color=tint)
    return mesh
