"""Table 4: HARC on the last layers only: run time, overall accuracy, and the share of the full gain."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

from pipelines.record import CellRecord
from pipelines.report.figures.lines import LinePanel, lines_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.paper import paper_values, published
from pipelines.report.registry import Content, Fact, Finding, Sweep, report
from pipelines.report.rules import by_order, by_sign
from pipelines.report.statistics import half_width
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.measured import MEASURES, difference
from pipelines.report.tables.points import level_of, method_of, series_of
from pipelines.report.tables.table import Column, Row, Table

BASELINE = ("0 (baseline)",)
COLUMNS = [
    Column("runtime_min", "Run time", "min", unit="min", significant=3, interval=False),
    Column("overall", "Overall", unit="%", best="max"),
    Column("percent_of_full_gain", "Share of the full gain", "Share", unit="%", digits=0),
]


@report("table4")
def table4(sweep: Sweep) -> Content:
    """Rows from none to all layers; the share is given only where the full gain is clearly positive."""
    total = total_layers(sweep)
    full = (f"All {total}",)

    def number(cell: CellRecord) -> int:
        return calibrated_layers(cell.setting("calibrate.layers"), total) if cell.calibrated else 0

    numbers = sorted({0, *map(number, sweep.cells), total})
    table = setting_table(sweep.cells, [Column("layers", "Layers calibrated", kind="key")],
                          [_key(one, total) for one in numbers], lambda cell: _key(number(cell), total),
                          baseline_of=lambda key: None if key == BASELINE else BASELINE)  # fmt: skip
    table.columns = [*COLUMNS, *MEASURES]
    paper = table.paper = published("table4", sweep.scale)
    printed = paper_values(paper, 1) if paper else {}
    for row in table.rows:
        row.paper = printed.get(row.key, {})
        seconds = row.cell.calibration.seconds if row.cell and row.cell.calibration else None
        if row.status == "ok" and seconds is not None:
            row.values["runtime_min"] = seconds / 60
    defined = _shares(table, table.row(*full))
    content = Content(table, [_picture(table, sweep.scale)] if table.row(*BASELINE) else [], _findings(table))
    content.notes = [*notes(sweep, table), "Run time is calibration's alone."]
    if not defined:
        content.notes.append(
            "The share of the full gain is not defined here: the gain of calibrating all layers is not clearly "
            "positive (its paired 95 % interval reaches zero), or was not measured."
        )
    content.facts = [
        Fact(row.key[0], f"{row.values['overall']:.2f} %", row.gain["overall"].text() if "overall" in row.gain else "")
        for row in table.rows if "overall" in row.values
    ]  # fmt: skip
    return content


def total_layers(sweep: Sweep) -> int:
    """MoE layers of the model, as measured; where no cell got so far, the size that the scale states."""
    for cell in sweep.cells:
        if cell.routing and cell.routing.kl:
            return len(next(iter(cell.routing.kl.values())))
    return int(sweep.cells[0].setting("scale.size.layers"))


def calibrated_layers(given: Any, total: int) -> int:
    """How many layers `calibrate.layers` stands for: all, a number, or a share such as 25%, rounded up as HARC does."""
    if given == "all":
        return total
    text = str(given)
    return math.ceil(Fraction(text.strip()[:-1]) * total / 100) if text.strip().endswith("%") else int(text)


def _key(number: int, total: int) -> tuple[str]:
    return BASELINE if number == 0 else (f"All {total}",) if number >= total else (f"Last {number}",)


def _shares(table: Table, full: Row | None) -> bool:
    """Fills in each row's share of the full gain with its interval; whether that gain is clearly positive at all."""
    base = table.row(*BASELINE)
    whole = difference(full, base, "overall")
    if full is None or base is None or whole is None or whole.low <= 0:
        return False
    against = full.draws["overall"] - base.draws["overall"]
    for row in table.rows:
        gain = difference(row, base, "overall")
        if gain is not None:
            row.values["percent_of_full_gain"] = 100 * gain.value / whole.value
            if row is not base and row is not full:
                drawn = 100 * (row.draws["overall"] - base.draws["overall"]) / against
                row.ci95["percent_of_full_gain"] = half_width(drawn)
    return True


def _picture(table: Table, scale: str) -> Picture:
    base = table.row(*BASELINE)
    assert base is not None
    rows = [row for row in table.rows if row is not base]
    series = series_of(rows, [int(row.key[0].split()[1]) for row in rows], method_of(base))
    level = level_of(base, "overall")
    ticks = [(float(x), f"{x:g}") for x in series.x]
    return lines_plot(
        "figure", [LinePanel("", "last layers calibrated", [series], [level] if level else [], ticks=ticks)],
        title="Overall accuracy by layers calibrated",
        caption="Bars are 95 % bootstrap intervals over problems; the dashed line and its band: the merge as it was.",
        axis="Overall accuracy (%)", scale=scale,
    )  # fmt: skip


def _findings(table: Table) -> list[Finding]:
    pairs = list(pairwise(table.rows))
    steps = {f"{after.key[0]} over {before.key[0]}": difference(after, before, "overall") for before, after in pairs}
    seconds = [row.values.get("runtime_min") for row in table.rows[1:]]
    rising = {
        f"{after.key[0]} over {before.key[0]}": None if one is None or two is None else two > one
        for (before, after), one, two in zip(pairs[1:], seconds, seconds[1:], strict=False)
    }
    listed = ", ".join(
        f"{row.key[0]} {60 * row.values['runtime_min']:.1f} s" for row in table.rows if "runtime_min" in row.values
    )
    first = table.rows[1]
    return [
        by_sign("The more layers are calibrated, the higher the accuracy.", steps),
        by_sign("Calibrating the last quarter of the layers alone is a gain.",
                {first.key[0]: first.gain.get("overall")}),
        by_order("Run time grows with the layers calibrated.", rising, f"{listed or 'No run time'}.",
                 rule="Holds if calibration takes longer in each row than in the one before."),
    ]  # fmt: skip
