"""Table 7: SFT on the calibration data after merging, without and with HARC, and the routing KL of each.

Below the paper's rows stand the routers tuned alone, on the sources' recorded routing.
"""

import dataclasses

from pipelines.record import CellRecord
from pipelines.report.figures.dots import DotPanel, dots_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.paper import paper_values, published
from pipelines.report.registry import Content, Fact, Finding, Sweep, report
from pipelines.report.rules import by_order, by_sign, change
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.measured import MEASURES, difference
from pipelines.report.tables.points import dot_of
from pipelines.report.tables.routing import KL
from pipelines.report.tables.rows import method_label
from pipelines.report.tables.table import Column, Table

VARIANTS = ("merged", "HARC", "SFT", "HARC+SFT")
TRAINED = "router SFT"  # not in the paper's table; its authors' repository has it
RANKED_KL = dataclasses.replace(KL, best="min")


@report("table7")
def table7(sweep: Sweep) -> Content:
    """Each method's four variants, then its routers tuned alone; differences are from the merged one."""
    keys = [Column("method", "Method", kind="key"), Column("variant", "Variant", kind="key")]
    methods = list(dict.fromkeys(map(method_label, sweep.cells)))
    expected = [(method, variant) for method in methods for variant in VARIANTS]
    expected += [(method, TRAINED) for method in methods]
    table = setting_table(sweep.cells, keys, expected, _key,
                          baseline_of=lambda key: None if key[1] == "merged" else (key[0], "merged"))  # fmt: skip
    means = [column for column in table.columns if column.name.endswith("_avg") or column.name == "overall"]
    table.columns = [*means, RANKED_KL, *(column for column in MEASURES if column.name != "routing_kl")]
    paper = table.paper = published("table7", sweep.scale)
    numbers = paper_values(paper, 2) if paper else {}
    for row in table.rows:
        row.paper = numbers.get(row.key, {})
    facts = [
        Fact(row.name, f"{row.values['overall']:.2f} %", f"routing KL {KL.text(row.values.get('routing_kl'))} nats")
        for row in table.rows if row.key[1] == "HARC+SFT" and "overall" in row.values
    ]  # fmt: skip
    return Content(table, [_picture(table, sweep.scale)], _findings(table), facts, notes(sweep, table))


def _key(cell: CellRecord) -> tuple[str, ...]:
    if cell.calibrate == "router_sft":
        return method_label(cell), TRAINED
    steps = ["HARC"] * cell.calibrated + ["SFT"] * cell.sft
    return method_label(cell), "+".join(steps) or "merged"


def _picture(table: Table, scale: str) -> Picture:
    def panel(title: str, name: str, axis: str) -> DotPanel:
        dots = []
        for row in table.rows:
            label = {"merged": row.key[0], TRAINED: f"{row.key[0]} + {TRAINED}"}.get(row.key[1], f"+ {row.key[1]}")
            marker = "s" if "SFT" in row.key[1] else "o"
            dots.append(dot_of(row, name, label, filled="HARC" in row.key[1], marker=marker, method=row.key[0]))
        return DotPanel(title, axis, dots)

    return dots_plot(
        "figure", [panel("Overall", "overall", "accuracy (%)"), panel("Routing KL", "routing_kl", "nats")],
        title="Overall accuracy and routing KL of each variant",
        caption="Filled: with HARC; squares: after SFT on the calibration data, of all weights or of the "
        "routers alone. Bars are 95 % bootstrap intervals over "
        "problems; routing KL is measured on the same held-out text for all.",
        scale=scale,
    )  # fmt: skip


def _findings(table: Table) -> list[Finding]:
    methods = list(dict.fromkeys(row.key[0] for row in table.rows))
    raised: dict[str, bool | None] = {}
    lowered: dict[str, bool | None] = {}
    shown, better = [], {}
    for method in methods:
        rows = {variant: table.row(method, variant) for variant in VARIANTS}
        kl = {variant: row.values.get("routing_kl") if row else None for variant, row in rows.items()}
        steps = (("merged", "SFT", raised), ("HARC", "HARC+SFT", raised),
                 ("merged", "HARC", lowered), ("SFT", "HARC+SFT", lowered))  # fmt: skip
        for before, after, into in steps:
            one, two = kl[before], kl[after]
            up = None if one is None or two is None else two > one
            into[f"{method}, {after} against {before}"] = up if up is None or into is raised else not up and two != one
            if one is not None and two is not None:
                shown.append((into is raised, f"{method}, {before} → {after}: {change(one, two)}"))
        for other in VARIANTS[:3]:
            better[f"{method}, over {other}"] = difference(rows["HARC+SFT"], rows[other], "overall")
    texts = ["; ".join(text for up, text in shown if up is wanted) + "." for wanted in (True, False)]
    rule = (
        "Holds if routing KL, the mean over layers and domains on held-out text, is {} for every method, both without "
    )
    return [
        by_order("SFT raises routing KL.", raised, texts[0], rule=rule.format("higher") + "and with HARC before it."),
        by_order("HARC lowers routing KL.", lowered, texts[1], rule=rule.format("lower") + "and with SFT after it."),
        by_sign("HARC + SFT is best of the four variants.", better),
    ]
