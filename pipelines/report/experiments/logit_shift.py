"""Relative logit shift ‖z_m − z_s‖ / ‖z_s‖ on calibration data: by layer, histogram, shares under 0.1 and 0.2.

The paper's shift is of two routers on the same input x: here the merged model's. On own inputs, where hidden states
have drifted too, it is many times larger; it stands beside as drift.
"""

from statistics import fmean

from pipelines.record import RoutingResult
from pipelines.report.figures.lines import LinePanel, Series, lines_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.tables.accuracy import KEYS
from pipelines.report.tables.routing import LAYER_KEYS, by_domain, domains_of, layer_points, routing_rows
from pipelines.report.tables.table import Column, Row, Table

METHODS = ("TIES-Merging", "WUDI-Merging")  # those that the claims speak of
LIMITS = {"0.1": 90.0, "0.2": 99.0}  # per cent of tokens that the paper finds below
SHIFT = Column("shift", "Relative logit shift", "Shift", significant=3, interval=False)
DRIFT = Column("shift_own", "Shift on own inputs (drift)", "Own", significant=3, kind="measure")
DRIFT_BELOW = {
    limit: Column(f"below_{limit}_own", f"Own inputs: under {limit}", f"own < {limit}", unit="%", kind="measure")
    for limit in LIMITS
}
SHARE = Column("share", "Share of tokens in the bin", unit="%", significant=3, interval=False)


@report("logit_shift")
def logit_shift(sweep: Sweep) -> Content:
    """The table has a row a method and domain; the plotted points are curves by layer and bins of the histogram."""
    rows = routing_rows(sweep.cells, ("no",), METHODS)
    lines = [line for row in rows for line in _by_domain(row)]
    columns = [
        *(Column(f"below_{limit}", f"Tokens under {limit}", f"< {limit}", unit="%", interval=False)
          for limit in LIMITS),
        SHIFT,
        *(Column(f"q{quantile}", f"{quantile} quantile", f"q{quantile}", significant=3, kind="measure")
          for quantile in ("0.5", "0.9", "0.99")),
        DRIFT, *DRIFT_BELOW.values(),
    ]  # fmt: skip
    table = Table([*KEYS, Column("domain", "Domain", kind="key")], columns, lines, main="")
    points = layer_points(rows, [(SHIFT, "shift_same", 1.0), (DRIFT, "shift", 1.0)])
    points.keys = [*LAYER_KEYS, Column("bin_from", "Bin from", kind="key")]
    points.columns.append(SHARE)
    points.rows = [_longer(row) for row in points.rows] + [bin_ for row in rows for bin_ in _bins(row)]
    facts = [
        Fact(f"{method}: tokens under 0.1", f"{fmean(found):.2f} %", "mean of the domains")
        for method in METHODS if (found := _values(lines, method, "below_0.1"))
    ]  # fmt: skip
    pictures = [
        _by_layer(rows, sweep.scale, "figure", "shift_same", "on the merged model's router inputs"),
        _histogram(rows, sweep.scale),
        _by_layer(rows, sweep.scale, "figure_drift", "shift", "each model on its own router inputs"),
    ]
    content = Content(table, pictures, [_below(lines, limit) for limit in LIMITS], facts, notes(sweep, table), points)
    content.notes.append(
        "Over all tokens and layers of the calibration text, both routers given the merged model's inputs; shares and "
        "quantiles are counts over it, without interval. On own inputs each router is given its own model's hidden "
        "states: the shift is then the router's and that of all layers before it."
    )
    return content


def _by_domain(row: Row) -> list[Row]:
    """A method's row of each domain; a gap stays one row."""
    routing = _routing(row)
    if row.status != "ok" or not routing.shift_same:
        status = row.status if row.status != "ok" else "missing"
        return [Row((*row.key, "–"), status, row.why or "no routing on the same inputs was measured", label=row.key[0])]
    out = []
    for domain, by_layer in routing.shift_same.items():
        line = Row((*row.key, domain), "ok", label=f"{row.key[0]}, {domain}", cell=row.cell)
        line.values["shift"] = fmean(by_layer)
        line.values |= {f"below_{limit}": 100 * routing.shift_below_same[domain][limit] for limit in LIMITS}
        line.values |= {f"q{quantile}": value for quantile, value in routing.shift_quantiles_same[domain].items()}
        line.values["shift_own"] = fmean(routing.shift[domain])
        line.values |= {f"below_{limit}_own": 100 * routing.shift_below[domain][limit] for limit in LIMITS}
        out.append(line)
    return out


def _routing(row: Row) -> RoutingResult:
    return (row.cell.routing if row.cell else None) or RoutingResult()


def _longer(row: Row) -> Row:
    row.key = (*row.key, "")
    return row


def _bins(row: Row) -> list[Row]:
    """The histogram's bins as plotted points."""
    return [
        Row((*row.key, domain, "", f"{edge:g}"), "ok", values={"share": 100 * share})
        for domain, bins in _routing(row).shift_histogram_same.items()
        for edge, share in zip(bins.edges, bins.shares, strict=False)
    ]


def _domains(rows: list[Row]) -> list[str]:
    return domains_of(rows, "shift_same") or ["no domain"]


def _by_layer(rows: list[Row], scale: str, name: str, measure: str, where: str) -> Picture:
    panels = []
    for domain in _domains(rows):
        series = []
        for row in rows:
            values = by_domain(row, measure).get(domain, [])
            series.append(Series(row.key[0], row.key[0], range(1, len(values) + 1), values, dashed=row is rows[0]))
        panels.append(LinePanel(domain.capitalize(), "MoE layer", series, whole=True))
    return lines_plot(
        name, panels, title=f"Relative logit shift by layer, {where}", axis="relative logit shift", zero=True,
        scale=scale, caption=f"‖z_m − z_s‖ / ‖z_s‖, {where}, mean over the tokens of each domain's calibration text.",
    )  # fmt: skip


def _histogram(rows: list[Row], scale: str) -> Picture:
    panels = []
    for domain in _domains(rows):
        series = []
        for row in rows:
            bins = _routing(row).shift_histogram_same.get(domain)
            edges = bins.edges if bins else []
            shares = [100 * share for share in bins.shares] if bins else []
            # The last edge closes the last bin.
            series.append(Series(row.key[0], row.key[0], edges, [*shares, *shares[-1:]], step=True,
                                 dashed=row is rows[0]))  # fmt: skip
        panels.append(LinePanel(domain.capitalize(), "relative logit shift", series))
    return lines_plot(
        "figure_histogram", panels, title="Histogram of relative logit shifts", axis="tokens × layers (%)", zero=True,
        caption="Share of tokens and layers a bin of 0.02; the last bin takes what lies beyond.", scale=scale,
    )  # fmt: skip


def _values(lines: list[Row], method: str, name: str) -> list[float]:
    return [line.values[name] for line in lines if line.key[0] == method and name in line.values]


def _below(lines: list[Row], limit: str) -> Finding:
    wanted = LIMITS[limit]
    claim = f"More than {wanted:g} % of tokens shift by less than {limit}, with TIES and with WUDI."
    rule = (
        "Both routers on the same inputs. Holds if the share is above that for both methods in every domain; “in "
        "direction only” if it is as the mean of the domains for both; does not hold otherwise."
    )
    name = f"below_{limit}"
    shares = {method: _values(lines, method, name) for method in METHODS}
    listed = "; ".join(f"{line.name}: {line.values[name]:.2f} %" for line in lines if name in line.values)
    known = [found for found in shares.values() if found]
    if any(fmean(found) <= wanted for found in known):
        verdict = FAILS
    elif len(known) < len(shares):
        verdict = OPEN
    else:
        verdict = HOLDS if all(share > wanted for found in known for share in found) else LEANS
    return Finding(claim, rule, verdict, f"{listed or 'Not measured'}.")
