"""One setting of the calibration varied: a row for each value, all compared with the merge as it was."""

from collections.abc import Callable, Mapping, Sequence

from pipelines.record import CellRecord
from pipelines.report.figures.dots import DotPanel, dots_plot
from pipelines.report.figures.style import Picture
from pipelines.report.registry import Fact, Sweep
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.points import dot_of, level_of
from pipelines.report.tables.table import Column, Table

NONE = "uncalibrated"


def compared_settings(
    sweep: Sweep, name: str, label: str, rows: Sequence[str], setting_of: Callable[[CellRecord], str]
) -> Table:
    """A row for each value of the setting, and NONE, the merge as it was, which all are compared with.

    Args:
        sweep: its cells.
        name: of the key column.
        label: of the key column, for people.
        rows: values that a claim speaks of, in its order, NONE among them; further values follow.
        setting_of: a calibrated cell's value.
    """

    def key_of(cell: CellRecord) -> tuple[str, ...]:
        return (setting_of(cell) if cell.calibrated else NONE,)

    return setting_table(sweep.cells, [Column(name, label, kind="key")], [(row,) for row in rows], key_of,
                         baseline_of=lambda key: None if key == (NONE,) else (NONE,))  # fmt: skip


def settings_picture(table: Table, title: str, scale: str, labels: Mapping[str, str] | None = None) -> Picture:
    """Overall accuracy of each setting, with the uncalibrated level."""
    base = table.row(NONE)
    dots = [
        dot_of(row, "overall", (labels or {}).get(row.key[0], row.key[0]), filled=row is not base, gain=True)
        for row in table.rows
    ]
    return dots_plot(
        "figure", [DotPanel("", "Overall accuracy (%)", dots, level_of(base, "overall"))], title=title,
        caption="Bars are 95 % bootstrap intervals over problems; the dashed line and its band: the merge as it was. "
        "At the right the difference from it; bold with an asterisk where its paired 95 % interval excludes zero.",
        scale=scale,
    )  # fmt: skip


def settings_facts(table: Table) -> list[Fact]:
    """The page's headlines: the best setting, and how many lie above the merge as it was."""
    values = {row.key[0]: row.values["overall"] for row in table.rows if "overall" in row.values and row.baseline}
    gains = [row.gain["overall"] for row in table.rows if "overall" in row.gain]
    if not values or not gains:
        return []
    best = max(values, key=values.__getitem__)
    base = table.row(NONE)
    note = f"{NONE}: {base.values['overall']:.2f} %" if base and "overall" in base.values else ""
    above, clear = sum(gain.value > 0 for gain in gains), sum(gain.low > 0 for gain in gains)
    return [
        Fact(f"Best: {best}", f"{values[best]:.2f} %", note),
        Fact("Settings above the uncalibrated merge", f"{above} of {len(gains)}", f"{clear} beyond their interval"),
    ]
