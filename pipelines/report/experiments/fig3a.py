"""Figure 3a: HARC's Hessian full, diagonal or identity, and the merge as it was."""

from itertools import pairwise
from typing import Any

from pipelines.report.accuracy import setting_table
from pipelines.report.dots import DotPanel, dots_plot
from pipelines.report.measured import difference
from pipelines.report.merging import notes
from pipelines.report.points import dot_of, level_of
from pipelines.report.registry import Content, Fact, Finding, Sweep, report
from pipelines.report.rules import by_sign
from pipelines.report.table import Column, Table

NONE = "uncalibrated"
ROWS = ("full", "diagonal", "identity", NONE)


@report("fig3a")
def fig3a(sweep: Sweep) -> Content:
    """A row a Hessian, in the order that the paper found."""
    table = compared_settings(sweep, "hessian", "Hessian", ROWS, lambda cell: cell["config"]["calibrate"]["hessian"])
    picture = settings_picture(table, "Overall accuracy by Hessian", sweep.scale)
    return Content(table, [picture], _findings(table), settings_facts(table), notes(sweep, table))


def compared_settings(sweep: Sweep, name: str, label: str, rows, setting_of) -> Table:
    """A row a value of one of HARC's settings, and NONE, the merge as it was, which all are compared with."""

    def key_of(cell: dict[str, Any]) -> tuple[str, ...]:
        return (NONE if cell["calibrate"] == "none" else str(setting_of(cell)),)

    return setting_table(sweep.cells, [Column(name, label, kind="key")], [(row,) for row in rows], key_of,
                         baseline_of=lambda key: None if key == (NONE,) else (NONE,))  # fmt: skip


def settings_picture(table: Table, title: str, scale: str, labels: dict[str, str] | None = None):
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


def _findings(table: Table) -> list[Finding]:
    steps = {
        f"{one} over {other}": difference(table.row(one), table.row(other), "overall") for one, other in pairwise(ROWS)
    }
    claim = "Accuracy falls in the order full, diagonal, identity Hessian, uncalibrated."
    return [by_sign(claim, steps)]
