"""Table 3: run time and peak memory of merging and of calibration themselves, each repeat in a process of its own.

The paper's three rows come first (its data-free row pools the repeats of the methods it names), then each of these.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from pipelines.record import CellRecord, Repetition
from pipelines.report.figures.dots import Dot, DotPanel, dots_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.paper import paper_values, published
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.tables.rows import one_line
from pipelines.report.tables.table import Column, Row, Table

DATA_FREE = {"average": "Weight Averaging", "ties": "TIES-Merging", "dare": "DARE"}
POOLED = f"Data-free ({', '.join(DATA_FREE.values())})"
COLUMNS = [
    Column("runtime_min", "Run time", "min", unit="min", significant=3, interval=False),
    Column("peak_memory_gb", "Peak memory", "GB", unit="GB", significant=3, interval=False),
    Column("runtime_s", "Run time, median", "s", unit="s", kind="measure", significant=3),
    Column("runtime_s_low", "shortest", unit="s", kind="measure", significant=3),
    Column("runtime_s_high", "longest", unit="s", kind="measure", significant=3),
    Column("peak_memory_gb_low", "Peak memory, least", unit="GB", kind="measure", significant=3),
    Column("peak_memory_gb_high", "most", unit="GB", kind="measure", significant=3),
    Column("device_memory_gb", "Device memory, median", unit="GB", kind="measure", significant=3),
    Column("device_memory_gb_low", "least", unit="GB", kind="measure", significant=3),
    Column("device_memory_gb_high", "most", unit="GB", kind="measure", significant=3),
    Column("repeats", "Repeats", kind="measure", digits=0),
]


@report("table3")
def table3(sweep: Sweep) -> Content:
    """The costs of data-free merging, of RegMean and of HARC."""
    cells = {(cell.merge, cell.calibrate): cell for cell in sweep.cells if cell.status != "excluded"}
    single = {method: cells.get((method, "none")) for method in (*DATA_FREE, "regmean")}
    harc: list[CellRecord | None] = [cell for (_, calibrate), cell in cells.items() if calibrate != "none"]
    rows = [
        _row(POOLED, [single[method] for method in DATA_FREE], "merge"),
        _row("RegMean", [single["regmean"]], "merge"),
        _row("HARC", harc if harc else [None], "calibrate"),
        *(_row(label, [single[method]], "merge") for method, label in DATA_FREE.items()),
    ]
    rows[2].harc = True
    paper = published("table3", sweep.scale)
    for row in rows if paper else ():
        row.paper = paper_values(paper, 1).get(row.key, {}) if paper else {}
    shown = [
        one for one in COLUMNS if one.kind == "accuracy" or one.name in {name for row in rows for name in row.values}
    ]
    table = Table([Column("method", "Method", kind="key")], shown, rows, main="", paper=paper)
    facts = [
        Fact("Data-free merging" if row.key[0] == POOLED else row.key[0],
             f"{COLUMNS[2].text(row.values['runtime_s'])} s",
             f"{COLUMNS[1].text(row.values['peak_memory_gb'])} GB resident; median of {row.values['repeats']:.0f}")
        for row in rows[:3] if row.status == "ok"
    ]  # fmt: skip
    return Content(table, [_picture(table, sweep.scale)], _findings(rows), facts, [
        *notes(sweep, table),
        "Wall time and the most resident memory of the step alone, without starting Python and loading its packages: "
        "median over repeats, each in a process of its own, with the range. HARC's row is calibration alone, of a "
        "merge that is there already. Device memory where there is a device.",
    ])  # fmt: skip


def _row(label: str, cells: Sequence[CellRecord | None], step: str) -> Row:
    """Median and range over all repeats of these cells; a gap as soon as one of them has none."""
    row = Row((label,), label=label)
    repeats: list[Repetition] = []
    for cell in cells:
        found = cell.cost.get(step, []) if cell else []
        if cell is None or cell.status != "ok" or not found:
            row.status = "missing" if cell is None or cell.status == "ok" else cell.status
            name = f"{cell.row.method}: " if cell and len(cells) > 1 else ""
            error = one_line(cell.error if cell else None)
            row.why = f"{name}{error}" if error else "no cell of this sweep measured it"
            return row
        repeats += found
    row.status, row.cell = "ok", cells[0] if len(cells) == 1 else None
    for name, key in (("runtime_s", "seconds"), ("peak_memory_gb", "peak_memory_gb"), ("device_memory_gb",) * 2):
        values = [value for one in repeats if (value := getattr(one, key)) is not None]
        if values:
            row.values |= {name: median(values), f"{name}_low": min(values), f"{name}_high": max(values)}
    row.values |= {"runtime_min": row.values["runtime_s"] / 60, "repeats": float(len(repeats))}
    return row


def _picture(table: Table, scale: str) -> Picture:
    pooled, regmean, harc, *single = table.rows

    def panel(title: str, name: str, axis: str) -> DotPanel:
        dots = []
        for row in (pooled, *single, regmean, harc):
            method = "Data-free" if row is pooled else row.key[0]
            dots.append(Dot(method, method, row.values.get(name), row.values.get(f"{name}_low"),
                            row.values.get(f"{name}_high"), marker="D" if row in (pooled, harc) else "o"))  # fmt: skip
        return DotPanel(title, axis, dots, zero=True)

    return dots_plot(
        "figure",
        [panel("Run time", "runtime_s", "seconds"), panel("Peak memory", "peak_memory_gb", "GB")],
        title="Run time and peak memory",
        caption="Median over repeats of the step alone; bars reach from the least to the most of them. Diamonds: the "
        "data-free methods together, and HARC's calibration.",
        scale=scale,
    )


_RULE = "Holds if the ranges over repeats are apart{}; “in direction only” if only the medians are; does not otherwise."


def _findings(rows: Sequence[Row]) -> list[Finding]:
    free, regmean, harc = rows[:3]
    seconds, memory = _RULE.format(" in this order"), _RULE.format("")
    return [
        _ordered("Data-free merging takes least time, HARC most, RegMean between.", [free, regmean, harc], "runtime_s",
                 "s", seconds),
        _ordered("RegMean needs more memory than data-free merging.", [free, regmean], "peak_memory_gb", "GB", memory),
        _ordered("HARC needs more memory than data-free merging.", [free, harc], "peak_memory_gb", "GB", memory),
        _ordered("HARC needs no more memory than RegMean.", [harc, regmean], "peak_memory_gb", "GB", memory),
    ]  # fmt: skip


def _ordered(claim: str, rows: Sequence[Row], name: str, unit: str, rule: str) -> Finding:
    """That a measure rises from row to row."""
    if any(row.status != "ok" for row in rows):
        return Finding(claim, rule, OPEN, "Not every row was measured.")
    pairs = list(pairwise(rows))
    if any(after.values[name] <= before.values[name] for before, after in pairs):
        verdict = FAILS
    else:
        apart = all(before.values[f"{name}_high"] < after.values[f"{name}_low"] for before, after in pairs)
        verdict = HOLDS if apart else LEANS
    text = COLUMNS[2].text
    listed = ", ".join(
        f"{'data-free' if row.key[0] == POOLED else row.key[0]} {text(row.values[name])} {unit} "
        f"[{text(row.values[f'{name}_low'])}, {text(row.values[f'{name}_high'])}]"
        for row in rows
    )
    return Finding(claim, rule, verdict, f"{listed}.")
