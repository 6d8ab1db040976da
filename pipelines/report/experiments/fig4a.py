"""Figure 4a: routing KL by layer, without and with HARC, on held-out text of each domain."""

import math
from statistics import fmean

from pipelines.report.figures.plots import Curves, layers_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.rules import by_order, change
from pipelines.report.tables.accuracy import KEYS
from pipelines.report.tables.measured import MEASURES
from pipelines.report.tables.routing import (
    KL,
    MISMATCH,
    by_domain,
    domains_of,
    layer_points,
    mean_by_layer,
    routing_rows,
)
from pipelines.report.tables.table import Column, Row, Table


@report("fig4a")
def fig4a(sweep: Sweep) -> Content:
    """The plotted points are (method, harc, domain, layer); the table has each cell's means."""
    rows = routing_rows(sweep.cells, ("no", "yes"))
    domains = domains_of(rows, "kl")
    columns = [Column(f"routing_kl_{domain}", f"Routing KL, {domain}", f"KL {domain}", unit="nats", significant=3,
                      interval=False) for domain in domains]  # fmt: skip
    for row in rows:
        for domain, values in by_domain(row, "kl").items():
            row.values[f"routing_kl_{domain}"] = fmean(values)
        if row.status == "ok" and by_domain(row, "kl"):
            row.values["routing_kl"] = fmean(mean_by_layer(by_domain(row, "kl")))
    table = Table(KEYS, [*columns, KL, *MEASURES[2:]], rows, main="")
    before, after = rows[:2]
    picture = _picture(before, after, domains, sweep.scale)
    content = Content(table, [picture], _findings(before, after), _facts(before, after), notes(sweep, table))
    content.points = layer_points(rows, [(KL, "kl", 1.0), (MISMATCH, "mismatch", 100.0)])
    content.notes.append(
        "Routing KL and mismatch have no interval here: they are means over all tokens of one held-out text, the same "
        "for all rows."
    )
    return content


def _picture(before: Row, after: Row, domains: list[str], scale: str) -> Picture:
    curves = [
        Curves(before.key[0], by_domain(before, "kl").get(domain), by_domain(after, "kl").get(domain),
               title=domain.capitalize())
        for domain in domains or ["no domain"]
    ]  # fmt: skip
    caption = f"{before.key[0]} on held-out text of each domain: dashed as merged, solid with HARC."
    return layers_plot("figure", curves, title="Routing KL by layer and domain", caption=caption,
                       axis="Routing KL (nats)", scale=scale)  # fmt: skip


def _facts(before: Row, after: Row) -> list[Fact]:
    if not {"routing_kl"} <= before.values.keys() & after.values.keys():
        return []
    one, two = before.values["routing_kl"], after.values["routing_kl"]
    return [
        Fact("Routing KL with HARC", change(one, two), f"{KL.text(one)} → {KL.text(two)} nats, all layers, domains")
    ]


def later(layers: int, paper_layer: int) -> int:
    """The layer (from 1) that stands where `paper_layer` does among the paper's 16."""
    return math.ceil(layers * paper_layer / 16)


def _findings(before: Row, after: Row) -> list[Finding]:
    one, two = (mean_by_layer(by_domain(row, "kl")) or None for row in (before, after))
    return [_grows(before, one), *_suppressed(one, two)]


def _grows(before: Row, mean: list[float] | None) -> Finding:
    claim = "Without HARC, routing KL grows in the later layers."
    rule = (
        "Holds if, in every domain, mean routing KL from the layer at 11/16 of the depth on is higher than before it; "
        "“in direction only” if it is for the mean of the domains only."
    )
    if mean is None:
        return Finding(claim, rule, OPEN, "Not measured.")
    start = later(len(mean), 11) - 1
    parts = {name: (fmean(values[:start]), fmean(values[start:])) for name, values in by_domain(before, "kl").items()}
    everywhere = all(end > first for first, end in parts.values())
    verdict = HOLDS if everywhere else LEANS if fmean(mean[start:]) > fmean(mean[:start]) else FAILS
    listed = "; ".join(f"{name}: {KL.text(first)} before, {KL.text(end)} after" for name, (first, end) in parts.items())
    return Finding(claim, rule, verdict, f"From layer {start + 1} of {len(mean)} on. {listed} (nats).")


def _suppressed(one: list[float] | None, two: list[float] | None) -> list[Finding]:
    lower = "Holds if it is lower with HARC in every layer, as the mean of the domains."
    most = "Holds if the mean reduction in nats is larger from the layer at 12/16 of the depth on than before it."
    claims = (
        "HARC suppresses routing KL in every layer.",
        "HARC suppresses it most in the last layers (12 to 16 of 16).",
    )
    if one is None or two is None:
        return [Finding(claim, rule, OPEN, "Not measured.") for claim, rule in zip(claims, (lower, most), strict=True)]
    fall = [before - after for before, after in zip(one, two, strict=True)]
    steps: dict[str, bool | None] = {f"layer {i}": value > 0 for i, value in enumerate(fall, 1)}
    listed = ", ".join(change(before, after) for before, after in zip(one, two, strict=True))
    start = later(len(fall), 12) - 1
    first, last = fmean(fall[:start]), fmean(fall[start:])
    text = f"Mean reduction {last:.3g} nats from layer {start + 1} on, {first:.3g} before."
    return [
        by_order(claims[0], steps, f"Change by layer: {listed}.", rule=lower),
        by_order(claims[1], {"last layers": last > first}, text, rule=most),
    ]
