"""Figure 3a: HARC's Hessian full, diagonal or identity, and the merge as it was."""

from itertools import pairwise

from pipelines.report.notes import notes
from pipelines.report.registry import Content, Finding, Sweep, report
from pipelines.report.rules import by_sign
from pipelines.report.settings import NONE, compared_settings, settings_facts, settings_picture
from pipelines.report.tables.measured import difference
from pipelines.report.tables.table import Table

ROWS = ("full", "diagonal", "identity", NONE)  # in the order that the claim gives them


@report("fig3a")
def fig3a(sweep: Sweep) -> Content:
    """A row a Hessian, in the order that the paper found."""
    table = compared_settings(sweep, "hessian", "Hessian", ROWS, lambda cell: cell.setting("calibrate.hessian"))
    picture = settings_picture(table, "Overall accuracy by Hessian", sweep.scale)
    return Content(table, [picture], _findings(table), settings_facts(table), notes(sweep, table))


def _findings(table: Table) -> list[Finding]:
    steps = {
        f"{one} over {other}": difference(table.row(one), table.row(other), "overall") for one, other in pairwise(ROWS)
    }
    claim = "Accuracy falls in the order full, diagonal, identity Hessian, uncalibrated."
    return [by_sign(claim, steps)]
