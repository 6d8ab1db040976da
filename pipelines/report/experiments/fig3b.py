"""Figure 3b: the two regularisations, α over (0, 1] and β over several decades, against the merge as it was."""

import math
from itertools import pairwise

from pipelines.record import CellRecord
from pipelines.report.figures.lines import LinePanel, lines_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Finding, Sweep, report
from pipelines.report.rules import by_flatness, by_sign
from pipelines.report.settings import NONE
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.measured import contrast, difference
from pipelines.report.tables.points import level_of, method_of, series_of
from pipelines.report.tables.table import Column, Row, Table, signed

_SHARP = (
    "Holds if the largest β lies below the smallest by a paired 95 % interval below zero and more than half of this "
    "fall happens in one step between neighbours; “in direction only” if it lies below, but not clearly or gradually; "
    "does not hold if it does not lie below."
)


@report("fig3b")
def fig3b(sweep: Sweep) -> Content:
    """A row a value of α or β; the uncalibrated merge first."""
    keys = [Column("regularisation", "Regularisation", kind="key"), Column("value", "Value", kind="key")]
    expected = sorted({(NONE, ""), *(_key(cell) for cell in sweep.cells)}, key=_place)
    table = setting_table(sweep.cells, keys, expected, _key,
                          baseline_of=lambda key: None if key[0] == NONE else (NONE, ""))  # fmt: skip
    for row in table.rows:
        row.label = NONE if row.key[0] == NONE else f"{row.key[0]} = {row.key[1]}"
    return Content(table, [_picture(table, sweep.scale)], _findings(table), [], notes(sweep, table))


def _key(cell: CellRecord) -> tuple[str, ...]:
    if not cell.calibrated:
        return (NONE, "")
    name = "alpha" if cell.setting("calibrate.beta") is None else "beta"
    value = cell.setting(f"calibrate.{name}")
    return (name, f"{value:g}" if isinstance(value, int | float) else str(value))


def _place(key: tuple[str, ...]) -> tuple[int, float]:
    """The merge as it was first, then α, then β, by value; `auto` after the numbers."""
    return (NONE, "alpha", "beta").index(key[0]), float(key[1]) if key[1] not in ("", "auto") else math.inf


def _of(table: Table, name: str) -> list[Row]:
    """The rows of α or β, by value; `auto` is no number and has no place on the axis."""
    return [row for row in table.rows if row.key[0] == name and row.key[1] != "auto"]


def _picture(table: Table, scale: str) -> Picture:
    base = table.row(NONE, "")
    level = level_of(base, "overall")
    panels = []
    for name, axis, log in (("alpha", "α", False), ("beta", "β", True)):
        rows = _of(table, name)
        method = next((method_of(row) for row in rows if row.cell), method_of(base))
        series = series_of(rows, [float(row.key[1]) for row in rows], method)
        title = "α: damped" if name == "alpha" else "β: amplified diagonal"
        panels.append(LinePanel(title, axis, [series], [level] if level else [], log=log))
    return lines_plot(
        "figure", panels, title="Overall accuracy by regularisation",
        caption="Left: α Λ + (1 − α) diag Λ. Right: Λ + β diag Λ. Bars are 95 % bootstrap intervals over problems; the "
        "dashed line and its band are the merge as it was.",
        axis="Overall accuracy (%)", scale=scale,
    )  # fmt: skip


def _findings(table: Table) -> list[Finding]:
    base = table.row(NONE, "")
    alphas = _of(table, "alpha")
    deviations = {
        row.key[1]: contrast([(1.0, row), *((-1 / len(alphas), other) for other in alphas)], "overall")
        for row in alphas
    }
    gains = {f"α = {row.key[1]}": difference(row, base, "overall") for row in alphas}
    return [
        by_flatness("Accuracy is flat over α.", deviations),
        by_sign("Every α lies above the uncalibrated merge.", gains),
        _threshold(_of(table, "beta")),
    ]


def _threshold(rows: list[Row]) -> Finding:
    claim = "Accuracy falls sharply past a threshold of β."
    whole = difference(rows[-1], rows[0], "overall") if len(rows) > 1 else None
    steps = {f"{one.key[1]} to {two.key[1]}": difference(two, one, "overall") for one, two in pairwise(rows)}
    known = {name: step.value for name, step in steps.items() if step is not None}
    if whole is None or len(known) < len(steps):
        return Finding(claim, _SHARP, OPEN, "Not every β was measured.")
    where = min(known, key=known.__getitem__)
    sharp = known[where] < whole.value / 2
    verdict = FAILS if whole.value >= 0 else HOLDS if whole.high < 0 and sharp else LEANS
    detail = (
        f"From β = {rows[0].key[1]} to {rows[-1].key[1]}: {whole.text()}; largest step down: {where} with "
        f"{signed(known[where])} points."
    )
    return Finding(claim, _SHARP, verdict, detail)
