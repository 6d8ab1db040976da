"""Figure 4b: how much calibration data HARC needs: mean and spread over seeded subsets, by share of the data."""

from collections.abc import Sequence

import numpy as np

from pipelines.record import CellRecord
from pipelines.report.figures.lines import LinePanel, lines_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import Content, Fact, Finding, Sweep, report
from pipelines.report.rules import by_flatness, by_sign
from pipelines.report.statistics import half_width
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.measured import contrast, difference, fill_gains
from pipelines.report.tables.points import level_of, series_of
from pipelines.report.tables.rows import method_label
from pipelines.report.tables.table import Column, Row, Table

KEYS = [Column("method", "Method", kind="key"), Column("percent", "Calibration data (%)", "Data %", kind="key")]
SPREAD = [
    Column("overall_min", "Lowest subset", "Low", unit="%", kind="measure"),
    Column("overall_max", "Highest subset", "High", unit="%", kind="measure"),
    Column("overall_std", "Std over subsets", unit="points", kind="measure"),
    Column("seeds", "Subsets", kind="measure", digits=0),
]


@report("fig4b")
def fig4b(sweep: Sweep) -> Content:
    """A row a method and share: the mean over the subsets drawn; share 0 is the merge as it was."""
    table, single = _tables(sweep)
    facts = [
        Fact(f"{row.key[0]} with all of the data", f"{row.values['overall']:.2f} %", row.gain["overall"].text())
        for row in table.rows if row.key[1] == "100" and "overall" in row.gain
    ]  # fmt: skip
    findings = [one for method in _methods(table) for one in _findings(table, method)]
    return Content(table, [_picture(table, single, sweep.scale)], findings, facts, [
        *notes(sweep, single),
        "A share's value is the mean over its subsets; ± is half a 95 % bootstrap interval of this mean over problems, "
        "lowest, highest and standard deviation (n − 1) are over subsets. A failed subset leaves its share a gap.",
    ])  # fmt: skip


def _tables(sweep: Sweep) -> tuple[Table, Table]:
    """The means over subsets, and the subsets themselves."""
    single = setting_table(sweep.cells, [*KEYS, Column("seed", "Seed", kind="key")],
                           _expected([_key(cell) for cell in sweep.cells]), _key,
                           baseline_of=lambda key: None if key[1] == "0" else (key[0], "0", ""))  # fmt: skip
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in single.rows:
        groups.setdefault((row.key[0], row.key[1]), []).append(row)
    rows = [_mean(key, group) for key, group in groups.items()]
    table = Table(
        KEYS, [*single.accuracies, *SPREAD, *(one for one in single.measures if one.name == "routing_kl")], rows
    )
    fill_gains(table)
    return table, single


def _expected(keys: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The cells' keys, a method's together and by share, with the merge as it was and all of the data of each."""
    methods = list(dict.fromkeys(key[0] for key in keys))
    ends = [(method, share, "") for method in methods for share in ("0", "100")]
    return sorted({*keys, *ends}, key=lambda key: (methods.index(key[0]), float(key[1]), int(key[2] or 0)))


def _methods(table: Table) -> list[str]:
    return list(dict.fromkeys(row.key[0] for row in table.rows))


def _key(cell: CellRecord) -> tuple[str, ...]:
    method = method_label(cell)
    if not cell.calibrated:
        return (method, "0", "")
    fraction = cell.setting("calibration_data.fraction")
    return (method, f"{100 * fraction:g}", "" if fraction == 1 else str(cell.setting("calibration_data.seed")))


def _mean(key: tuple[str, str], group: Sequence[Row]) -> Row:
    """One row of several subsets'; a gap as soon as one of them is."""
    row = Row(key, "ok", baseline=None if key[1] == "0" else (key[0], "0"), harc=key[1] != "0")
    row.label = f"{key[0]}, uncalibrated" if key[1] == "0" else f"{key[0]}, {key[1]} %"
    gap = next((one for one in group if one.status != "ok"), None)
    if gap is not None:
        row.status, row.why = gap.status, f"seed {gap.key[2]}: {gap.why}" if gap.key[2] else gap.why
        return row
    row.cell = group[0].cell if len(group) == 1 else None
    for name in set.intersection(*(set(one.values) for one in group)):
        row.values[name] = float(np.mean([one.values[name] for one in group]))
    for name in set.intersection(*(set(one.draws) for one in group)):
        if len({one.problems[name] for one in group}) == 1:
            row.draws[name] = np.mean([one.draws[name] for one in group], axis=0)
            row.problems[name] = group[0].problems[name]
            row.ci95[name] = half_width(row.draws[name])
    values = [one.values["overall"] for one in group if "overall" in one.values]
    if values:
        row.values |= {"overall_min": min(values), "overall_max": max(values), "seeds": float(len(values))}
    if len(values) > 1:
        row.values["overall_std"] = float(np.std(values, ddof=1))
    return row


def _picture(table: Table, single: Table, scale: str) -> Picture:
    series, levels = [], []
    for method in _methods(table):
        rows = [row for row in table.rows if row.key[0] == method and row.key[1] != "0"]
        subsets = [
            [one.values["overall"] for one in single.rows if one.key[:2] == row.key and "overall" in one.values]
            for row in rows
        ]
        series.append(series_of(rows, [float(row.key[1]) for row in rows], method, spread=subsets))
        level = level_of(table.row(method, "0"), "overall", f"{method}, uncalibrated")
        levels += [level] if level else []
    return lines_plot(
        "figure", [LinePanel("", "share of the calibration data (%)", series, levels)],
        title="Overall accuracy by share of the calibration data",
        caption="Mean over seeded subsets (dots) and each subset (ticks); bars are 95 % bootstrap intervals of the "
        "mean over problems. Dashed, with their bands: the merges as they were.",
        axis="Overall accuracy (%)", scale=scale,
    )  # fmt: skip


def _findings(table: Table, method: str) -> list[Finding]:
    rows = [row for row in table.rows if row.key[0] == method and row.key[1] != "0"]
    base = table.row(method, "0")
    above = {f"{row.key[1]} %": difference(row, base, "overall") for row in rows if float(row.key[1]) >= 20}
    late = [row for row in rows if float(row.key[1]) >= 40]
    deviations = {
        f"{row.key[1]} %": contrast([(1.0, row), *((-1 / len(late), one) for one in late)], "overall") for row in late
    }
    return [
        by_sign(f"{method}: above the uncalibrated merge from 20 % of the data on.", above),
        by_flatness(f"{method}: flat from 40 % of the data on.", deviations),
    ]
