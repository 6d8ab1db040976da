"""Figure 1: routers swapped both ways. The merged model with its source's router, the source with the merged router.

Beside them the merged model with its source's decisions: a swapped router still decides by the merged model's states.
"""

from pipelines.record import CellRecord
from pipelines.report.figures.dots import DotPanel, dots_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import Content, Fact, Finding, Sweep, report
from pipelines.report.rules import by_sign
from pipelines.report.tables.accuracy import setting_table
from pipelines.report.tables.measured import difference
from pipelines.report.tables.points import domain_points, dot_of
from pipelines.report.tables.table import Column, Table

SOURCE, SOURCE_SWAPPED, MERGED, MERGED_SWAPPED, REPLAYED, HARC = (
    "Source", "Source, merged router", "Merged", "Merged, source router", "Merged, source decisions", "Merged + HARC",
)  # fmt: skip
ROWS = (SOURCE, SOURCE_SWAPPED, MERGED, MERGED_SWAPPED, REPLAYED, HARC)
_BASELINE = {SOURCE_SWAPPED: SOURCE, MERGED_SWAPPED: MERGED, REPLAYED: MERGED, HARC: MERGED}


@report("fig1")
def fig1(sweep: Sweep) -> Content:
    """Six models by domain; a swapped or calibrated one is compared with what it was made of."""
    table = setting_table(
        sweep.cells, [Column("model", "Model", kind="key")], [(name,) for name in ROWS], _key,
        baseline_of=lambda key: (_BASELINE[key[0]],) if key[0] in _BASELINE else None,
    )  # fmt: skip
    domains = [column.name.removesuffix("_avg") for column in table.columns if column.name.endswith("_avg")]
    facts = [
        Fact(row.name, f"{row.values['overall']:.2f} %",
             f"{row.gain['overall'].text()} against {row.baseline[0].lower()}" if row.baseline else "")
        for row in table.rows if row.baseline and "overall" in row.gain
    ]  # fmt: skip
    pictures = [_picture(table, domains, sweep.scale)] if domains else []
    content = Content(table, pictures, _findings(table), facts, notes(sweep, table), domain_points(table, domains))
    content.notes.append(
        "A swapped router decides by the states of the model that it stands in. With the source's decisions the source "
        "reads every token beside the merged model, and its expert choices and their weights are replayed: what is "
        "left of the loss is not in the routing. Both models are run by transformers then."
    )
    return content


def _key(cell: CellRecord) -> tuple[str, ...]:
    if cell.swap == "merged":
        return (SOURCE_SWAPPED,)
    if cell.swap == "source":
        return (MERGED_SWAPPED,)
    if cell.swap == "decisions":
        return (REPLAYED,)
    if cell.merge == "individual":
        return (SOURCE,)
    return (HARC,) if cell.calibrated else (MERGED,)


def _marker(name: str) -> str:
    return "D" if "router" in name else "s" if name == REPLAYED else "o"


def _picture(table: Table, domains: list[str], scale: str) -> Picture:
    def panel(title: str, name: str) -> DotPanel:
        dots = [
            dot_of(row, name, row.key[0], filled=row.key[0] in (SOURCE, HARC), gain=len(domains) < 2,
                   marker=_marker(row.key[0]))
            for row in table.rows
        ]  # fmt: skip
        return DotPanel(title, "accuracy (%)", dots)

    return dots_plot(
        "figure", [panel(domain.capitalize(), f"{domain}_avg") for domain in domains],
        title="Accuracy after router swaps, by domain",
        caption="Diamonds: a model with another's router; square: routed by the source's own decisions. The "
        "merged model gets the router of each domain's source on "
        "that domain's problems; each source gets the merged router. Bars are 95 % bootstrap intervals over problems.",
        scale=scale,
    )  # fmt: skip


def _findings(table: Table) -> list[Finding]:
    def gain(name: str, other: str):
        return {f"{name}, overall against {other.lower()}": difference(table.row(name), table.row(other), "overall")}

    return [
        by_sign("The merged model with the source's router recovers accuracy.", gain(MERGED_SWAPPED, MERGED)),
        by_sign("The source model with the merged router loses accuracy.", gain(SOURCE_SWAPPED, SOURCE), sign=-1),
    ]
