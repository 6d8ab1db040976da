"""Relative logit shift ‖z_m − z_s‖ / ‖z_s‖ on calibration data: by layer, histogram, shares under 0.1 and 0.2."""

from statistics import fmean

from pipelines.report.accuracy import KEYS
from pipelines.report.experiments.fig4a import routing_rows
from pipelines.report.lines import LinePanel, Series, lines_plot
from pipelines.report.merging import notes
from pipelines.report.points import LAYER_KEYS, by_domain, layer_points
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.style import Picture
from pipelines.report.table import Column, Row, Table

METHODS = ("TIES-Merging", "WUDI-Merging")
LIMITS = {"0.1": 90.0, "0.2": 99.0}  # per cent of tokens that the paper finds below
SHIFT = Column("shift", "Relative logit shift", "Shift", significant=3, interval=False)
SHARE = Column("share", "Share of tokens in the bin", unit="%", significant=3, interval=False)


@report("logit_shift")
def logit_shift(sweep: Sweep) -> Content:
    """The table has a row a method and domain; the plotted points are curves by layer and bins of the histogram."""
    rows = routing_rows(sweep, METHODS, harc=False)
    lines = [line for row in rows for line in _by_domain(row)]
    columns = [
        *(Column(f"below_{limit}", f"Tokens under {limit}", f"< {limit}", unit="%", interval=False)
          for limit in LIMITS),
        SHIFT,
        *(Column(f"q{quantile}", f"{quantile} quantile", f"q{quantile}", significant=3, kind="measure")
          for quantile in ("0.5", "0.9", "0.99")),
    ]  # fmt: skip
    table = Table([*KEYS, Column("domain", "Domain", kind="key")], columns, lines, main="")
    points = layer_points(rows, [(SHIFT, "shift", 1.0)])
    points.keys = [*LAYER_KEYS, Column("bin_from", "Bin from", kind="key")]
    points.columns.append(SHARE)
    points.rows = [_longer(row) for row in points.rows] + [bin_ for row in rows for bin_ in _bins(row)]
    facts = [
        Fact(f"{method}: tokens under 0.1", f"{fmean(found):.2f} %", "mean of the domains")
        for method in METHODS if (found := _values(lines, method, "below_0.1"))
    ]  # fmt: skip
    pictures = [_by_layer(rows, sweep.scale), _histogram(rows, sweep.scale)]
    content = Content(table, pictures, [_below(lines, limit) for limit in LIMITS], facts, notes(sweep, table), points)
    content.notes.append(
        "Over all tokens and layers of the calibration text; shares and quantiles are counts over it, without interval."
    )
    return content


def _by_domain(row: Row) -> list[Row]:
    """A method's row of each domain; a gap stays one row."""
    routing = (row.cell or {}).get("routing") or {}
    if row.status != "ok" or not routing.get("shift"):
        status = row.status if row.status != "ok" else "missing"
        return [Row((*row.key, "–"), status, row.why or "no routing was measured", label=row.key[0])]
    out = []
    for domain, by_layer in routing["shift"].items():
        line = Row((*row.key, domain), "ok", label=f"{row.key[0]}, {domain}", cell=row.cell)
        line.values["shift"] = fmean(by_layer)
        below = {str(limit): share for limit, share in routing["shift_below"][domain].items()}
        line.values |= {f"below_{limit}": 100 * below[limit] for limit in LIMITS}
        line.values |= {f"q{quantile}": value for quantile, value in routing["shift_quantiles"][domain].items()}
        out.append(line)
    return out


def _longer(row: Row) -> Row:
    row.key = (*row.key, "")
    return row


def _bins(row: Row) -> list[Row]:
    """The histogram's bins as plotted points."""
    histogram = ((row.cell or {}).get("routing") or {}).get("shift_histogram") or {}
    return [
        Row((*row.key, domain, "", f"{edge:g}"), "ok", values={"share": 100 * share})
        for domain, bins in histogram.items()
        for edge, share in zip(bins["edges"], bins["shares"], strict=False)
    ]


def _domains(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(domain for row in rows for domain in by_domain(row, "shift"))) or ["no domain"]


def _by_layer(rows: list[Row], scale: str) -> Picture:
    panels = []
    for domain in _domains(rows):
        series = []
        for row in rows:
            values = by_domain(row, "shift").get(domain, [])
            series.append(Series(row.key[0], row.key[0], range(1, len(values) + 1), values, dashed=row is rows[0]))
        panels.append(LinePanel(domain.capitalize(), "MoE layer", series, whole=True))
    return lines_plot(
        "figure", panels, title="Relative logit shift by layer", axis="relative logit shift", zero=True, scale=scale,
        caption="‖z_m − z_s‖ / ‖z_s‖, mean over the tokens of each domain's calibration text.",
    )  # fmt: skip


def _histogram(rows: list[Row], scale: str) -> Picture:
    panels = []
    for domain in _domains(rows):
        series = []
        for row in rows:
            bins = (((row.cell or {}).get("routing") or {}).get("shift_histogram") or {}).get(domain)
            edges = bins["edges"] if bins else []
            shares = [100 * share for share in bins["shares"]] if bins else []
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
        "Holds if the share is above that for both methods in every domain; “in direction only” if it is as the mean "
        "of the domains for both; does not hold otherwise."
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
