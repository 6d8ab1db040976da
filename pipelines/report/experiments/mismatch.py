"""Mismatched decisions: by layer and domain, a token, and the share of tokens that have any (METHOD section 9)."""

from statistics import fmean

from pipelines.report.figures.plots import Curves, layers_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.tables.accuracy import KEYS
from pipelines.report.tables.routing import MISMATCH, by_domain, domains_of, layer_points, routing_rows
from pipelines.report.tables.table import Column, Row, Table

# WUDI at scale=olmoe, as the paper's text gives them (METHOD section 9).
PAPER = {"mismatch": 50.11, "mismatches_per_token": 8.02, "any_mismatch": 99.98}
HEADLINES = [
    Column("mismatch", "Decisions mismatched", "Mism.", unit="%", interval=False),
    Column("mismatches_per_token", "Mismatches a token", "a token", interval=False),
    Column("any_mismatch", "Tokens with at least one", "any", unit="%", interval=False),
]


@report("mismatch")
def mismatch(sweep: Sweep) -> Content:
    """The table has the headline figures of each row and domain; the plotted points are curves by layer."""
    rows = routing_rows(sweep.cells, ("no", "yes"))
    for row in rows:
        routing = row.cell.routing if row.cell else None
        if row.status == "ok" and routing and routing.mismatch:
            row.values["mismatch"] = 100 * fmean(fmean(values) for values in routing.mismatch.values())
            row.values["mismatches_per_token"] = fmean(routing.mismatches_per_token.values())
            row.values["any_mismatch"] = 100 * fmean(routing.any_mismatch.values())
    domains = domains_of(rows, "mismatch")
    for row in rows:
        for domain, values in by_domain(row, "mismatch", 100.0).items():
            row.values[f"mismatch_{domain}"] = fmean(values)
    by_name = [
        Column(f"mismatch_{domain}", f"Mismatched, {domain}", domain, unit="%", kind="measure") for domain in domains
    ]
    table = Table(KEYS, [*HEADLINES, *by_name], rows, main="")
    before, after = rows[:2]
    if sweep.scale == "olmoe":
        table.paper, before.paper = "section 9", PAPER
    content = Content(table, [_picture(before, after, domains, sweep.scale)], _findings(before), _facts(before, after),
                      notes(sweep, table), layer_points(rows, [(MISMATCH, "mismatch", 100.0)]))  # fmt: skip
    content.notes.append(
        "A decision is a token and layer's set of experts; it is mismatched when it differs at all from the source's, "
        "each model on the same text through its own layers. Means of the domains; counts over one held-out text, "
        "without an interval."
    )
    return content


def _picture(before: Row, after: Row, domains: list[str], scale: str) -> Picture:
    curves = [
        Curves(before.key[0], by_domain(before, "mismatch", 100.0).get(domain),
               by_domain(after, "mismatch", 100.0).get(domain), title=domain.capitalize())
        for domain in domains or ["no domain"]
    ]  # fmt: skip
    return layers_plot(
        "figure", curves, title="Mismatched decisions by layer and domain", axis="Decisions mismatched (%)",
        scale=scale,
        caption=f"{before.key[0]} against each domain's source, held-out text: dashed as merged, solid with HARC.",
    )  # fmt: skip


def _facts(before: Row, after: Row) -> list[Fact]:
    out = []
    for column in HEADLINES:
        if column.name in before.values:
            unit = f" {column.unit}" if column.unit else ""
            note = f"with HARC: {column.text(after.values[column.name])}{unit}" if column.name in after.values else ""
            out.append(Fact(column.label, f"{column.text(before.values[column.name])}{unit}", note))
    return out


def _findings(before: Row) -> list[Finding]:
    rule = (
        "Holds from {:g} % on; “in direction only” from {:g} %; does not hold below. Means of the domains, as merged."
    )
    judged = (
        ("At least half of the routing decisions are mismatched after merging.", "mismatch", 50.0, 25.0),
        ("Nearly every token has at least one mismatched decision.", "any_mismatch", 99.0, 90.0),
    )
    out = []
    for claim, name, holds, leans in judged:
        value = before.values.get(name)
        verdict = OPEN if value is None else HOLDS if value >= holds else LEANS if value >= leans else FAILS
        layers = len(next(iter(by_domain(before, "mismatch").values()), []))
        detail = (
            "Not measured."
            if value is None
            else f"{value:.2f} %, {before.values['mismatches_per_token']:.2f} mismatches a token over {layers} layers."
        )
        out.append(Finding(claim, rule.format(holds, leans), verdict, detail))
    return out
