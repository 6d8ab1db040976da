"""Reports of merging methods without and with HARC: tables 1, 5 and 6, and sweeps of one's own (`cells`, `world`).

The paper's finding for each of its tables is "HARC raises all methods overall". It is judged by the paired interval of
each method's gain, so that a small world's noise is not taken for it.
"""

from pipelines.record import RoutingResult
from pipelines.report.figures.plots import Curves, Pair, layers_plot, pairs_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.paper import published
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.tables.accuracy import accuracy_table, cells_layout, paper_layout
from pipelines.report.tables.evidence import (
    ACCURACY,
    LOSS,
    MARGINS,
    accuracy_effects,
    evidence_table,
    loss_effects,
    mean_effect,
)
from pipelines.report.tables.routing import mean_by_layer
from pipelines.report.tables.table import Column, Row, Table, signed


@report("table1", "table5", "table6")
def merging_report(sweep: Sweep) -> Content:
    """A table of the paper, row by row."""
    paper = published(sweep.experiment, sweep.scale)
    layout = paper_layout(sweep.experiment)
    table = accuracy_table(sweep.cells, layout, paper=paper)
    content = _content(sweep, table)
    # Table 6 of the paper has another best model than the claim that tables 1 and 5 share.
    content.findings = [primary(table), *findings(table, best=sweep.experiment != "table6")]
    if sweep.experiment == "table5":
        add_iterations(table)
        content.notes.append(
            "Iterations are of the preconditioned solver; whether three models need fewer than two is judged without a "
            "preconditioner, by +experiment=appendix_b1."
        )
    return content


@report("cells", "world")
def cells_report(sweep: Sweep) -> Content:
    """Any sweep: a row a cell in the order they came, the columns that they measured."""
    table = accuracy_table(sweep.cells, cells_layout(sweep.cells))
    return _content(sweep, table)


def _content(sweep: Sweep, table: Table) -> Content:
    pictures = [accuracy_picture(table, sweep.scale)] if table.accuracies else []
    for measure in ("kl", "mismatch"):
        picture = routing_picture(table, measure, sweep.scale)
        pictures += [picture] if picture else []
    return Content(table, pictures, [], facts(table), notes(sweep, table), evidence=evidence_table(table))


def methods(table: Table) -> list[tuple[str, Row | None, Row | None]]:
    """Name, row without and row with HARC of each method that is no bound, in the table's order."""
    calibrated = {row.baseline for row in table.rows if row.harc}
    return [
        (row.key[0], table.baseline(row), row) if row.harc else (row.key[0], row, None)
        for row in table.rows
        if not row.reference and (row.harc or row.key not in calibrated)
    ]


def accuracy_picture(table: Table, scale: str) -> Picture:
    """Overall accuracy without and with HARC per method, with intervals and paired gains; Individual as a line."""

    def point(row: Row | None) -> tuple[float, float] | None:
        if row is None or table.main not in row.values:
            return None
        return row.values[table.main], row.ci95.get(table.main, 0.0)

    pairs = []
    for name, before, after in methods(table):
        gain = after.gain.get(table.main) if after else None
        mark = f"{signed(gain.value)}{'*' if gain.clear else ''}" if gain else ""
        pairs.append(Pair(name, point(before), point(after), mark, bool(gain and gain.clear)))
    bound = next((row for row in table.rows if row.reference and point(row)), None)
    line = (bound.key[0], *point(bound)) if bound else None  # type: ignore[misc]
    caption = (
        "As merged (hollow) and with HARC (filled); bars are 95 % bootstrap intervals over problems. "
        "At the right the gain; bold with an asterisk where its paired 95 % interval excludes zero."
    )
    return pairs_plot("figure", pairs, title="Overall accuracy", caption=caption,
                      axis="Overall accuracy (%)", scale=scale, reference=line)  # fmt: skip


_MEASURES = {
    "kl": ("figure_routing_kl", "Routing KL by layer", "Routing KL (nats)", 1.0),
    "mismatch": ("figure_mismatch", "Mismatched decisions by layer", "Decisions mismatched (%)", 100.0),
}


def routing_picture(table: Table, measure: str, scale: str) -> Picture | None:
    """A measure of routing by layer, the mean of the domains, a panel a method; None when no cell has it."""
    name, title, axis, unit = _MEASURES[measure]

    def by_layer(routing: RoutingResult | None) -> list[float] | None:
        return [unit * value for value in mean_by_layer(routing.by_layer(measure))] if routing else None

    def routing_of(row: Row | None) -> RoutingResult | None:
        return row.cell.routing if row and row.cell else None

    def routing_before(row: Row | None) -> RoutingResult | None:
        return row.cell.routing_before if row and row.cell else None

    # A calibrated cell also carries the routing of its merge: enough where the row of that merge is not there.
    curves = [
        Curves(method, by_layer(routing_of(before)) or by_layer(routing_before(after)), by_layer(routing_of(after)))
        for method, before, after in methods(table)
    ]
    if not any(one.before or one.after for one in curves):
        return None
    caption = (
        f"{title} on held-out text, mean of the domains: dashed as merged, solid with HARC. "
        "All panels share the y axis."
    )
    return layers_plot(name, curves, title=title, caption=caption, axis=axis, scale=scale)


def primary(table: Table) -> Finding:
    """The primary endpoint, stated before any run: the mean gain of all methods in overall accuracy."""
    effects, lower = accuracy_effects(table), loss_effects(table)
    mean, mean_loss = mean_effect(list(effects.values())), mean_effect(list(lower.values()))
    claim = "Primary endpoint: HARC raises overall accuracy in the mean of all methods."
    rule = (
        "Holds if the mean gain has a paired 95 % interval above zero; “in direction only” if it is positive and the "
        "interval reaches zero; does not hold if it is not positive; undecided if a method could not be compared."
    )
    if mean is None:
        return Finding(claim, rule, OPEN, "The methods' gains are missing, or over different problems.")
    gain = mean.gain
    verdict = FAILS if gain.value <= 0 else HOLDS if gain.low > 0 else LEANS
    verdict = OPEN if verdict != FAILS and len(effects) < len(methods(table)) else verdict
    detail = (
        f"{gain.text()} points, p {mean.p:.3f}; the smallest effect that it could have seen (80 % power) is "
        f"{mean.detectable:.2f}. Within ± {MARGINS[ACCURACY]:g} point: {mean.harm(MARGINS[ACCURACY]).verdict}."
    )
    if mean_loss is not None:
        loss = mean_loss.gain
        detail += (
            f" Loss falls by {signed(loss.value, 4)} [{signed(loss.low, 4)}, {signed(loss.high, 4)}] nats a token, "
            f"p {mean_loss.p:.4f}; smallest effect seen {mean_loss.detectable:.4f}; within ± {MARGINS[LOSS]:g}: "
            f"{mean_loss.harm(MARGINS[LOSS]).verdict}."
        )
    return Finding(claim, rule, verdict, detail)


def add_iterations(table: Table) -> None:
    """Adds the mean number of our solver's iterations a layer, with all domains and with the first two."""
    for row in table.rows:
        cell = row.cell
        made = (("cg_iterations", cell.calibration), ("cg_iterations_two", cell.calibration_two)) if cell else ()
        for name, calibration in made:
            if calibration and calibration.layers:
                row.values[name] = sum(one.iterations for one in calibration.layers) / len(calibration.layers)
    table.columns += [
        Column("cg_iterations", "CG iterations a layer", "CG", kind="measure", digits=1),
        Column("cg_iterations_two", "CG iterations a layer, two models", "CG, two", kind="measure", digits=1),
    ]


def findings(table: Table, *, best: bool = True) -> list[Finding]:
    """The paper's findings about such a table, each with its rule. best: whether WUDI + HARC's rank is one."""
    paired = [(name, after.gain.get(table.main) if after else None) for name, _, after in methods(table)]
    gains = {name: gain for name, gain in paired if gain}
    raised = [name for name, gain in gains.items() if gain.value > 0]
    clear = [name for name, gain in gains.items() if gain.low > 0]
    total = len(paired)
    verdict = FAILS if len(raised) < len(gains) else OPEN if len(gains) < total else HOLDS
    verdict = LEANS if verdict == HOLDS and len(clear) < total else verdict
    lowered = [name for name, gain in gains.items() if gain.high < 0]
    out = [
        Finding(
            f"HARC raises all {_words(total)} methods overall.",
            "Holds if every method's overall gain has a paired 95 % interval above zero; “in direction only” if every "
            "gain is positive but some interval reaches zero; does not hold as soon as one gain is not positive.",
            verdict,
            f"{len(raised)} of {total} gains are positive, {len(clear)} of them with an interval above zero"
            + (f"; {len(lowered)} lie wholly below zero ({', '.join(lowered)})" if lowered else "")
            + (f"; {total - len(gains)} could not be compared" if len(gains) < total else "")
            + (f". Mean gain {table.pooled.text()} points." if table.pooled else "."),
        )
    ]
    out += [_best(table)] if best and table.columns else []
    return [*out, _routing(table)]


def _best(table: Table) -> Finding:
    values = {row.name: row.values[table.main] for row in table.rows if not row.reference and table.main in row.values}
    best = max(values, key=values.__getitem__) if values else "no row"
    wanted = "WUDI-Merging + HARC"
    verdict = OPEN if not values or table.failed else HOLDS if best == wanted else FAILS
    detail = f"The best merged model is {best}" + (f" with {values[best]:.2f} %." if values else ".")
    if best != wanted and wanted in values:
        detail += f" {wanted} reaches {values[wanted]:.2f} %."
    return Finding(f"{wanted} is the best merged model.", "Holds if its overall accuracy is the highest of the table; "
                   "its lead over the second is not tested.", verdict, detail)  # fmt: skip


def _routing(table: Table) -> Finding:
    both = [
        (before.values["routing_kl"], after.values["routing_kl"])
        for _, before, after in methods(table)
        if before and after and "routing_kl" in before.values and "routing_kl" in after.values
    ]
    fallen = sum(after < before for before, after in both)
    total = len(methods(table))
    verdict = FAILS if fallen < len(both) else OPEN if len(both) < total else HOLDS
    change = sum(100 * (after / before - 1) for before, after in both if before) / len(both) if both else 0.0
    return Finding("HARC lowers routing KL.", "Holds if, for every method, the mean over layers and domains on "
                   "held-out text is lower with HARC than without.", verdict,
                   f"It is lower for {fallen} of {total} methods; mean change {signed(change, 1)} %.")  # fmt: skip


def facts(table: Table) -> list[Fact]:
    """The page's headlines."""
    out = []
    values = [(row.values[table.main], row) for row in table.rows if not row.reference and table.main in row.values]
    if len(values) > 1:
        value, row = max(values, key=lambda pair: pair[0])
        bound = next((r for r in table.rows if r.reference and table.main in r.values), None)
        note = f"{bound.key[0]}: {bound.values[table.main]:.2f} %" if bound else ""
        out.append(Fact(f"Best merged: {row.name}", f"{value:.2f} %", note))
    gains = [row.gain[table.main] for row in table.rows if table.main in row.gain]
    if gains:
        up, clear = sum(gain.value > 0 for gain in gains), sum(gain.low > 0 for gain in gains)
        mean = sum(gain.value for gain in gains) / len(gains)
        out.append(Fact("Methods that HARC raises overall", f"{up} of {len(gains)}",
                        f"{clear} beyond their paired interval; mean {signed(mean)} points"))  # fmt: skip
    for name, label in (("routing_kl", "Routing KL with HARC"), ("mismatch", "Mismatched decisions with HARC")):
        both = [
            (before.values[name], after.values[name])
            for _, before, after in methods(table)
            if before and after and name in before.values and name in after.values and before.values[name]
        ]
        if both:
            change = sum(100 * (after / before - 1) for before, after in both) / len(both)
            down = sum(after < before for before, after in both)
            out.append(
                Fact(label, f"{signed(change, 1)} %", f"relative change; lower in {down} of {len(both)} methods")
            )
    return out


def _words(number: int) -> str:
    return {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}.get(number, str(number))
