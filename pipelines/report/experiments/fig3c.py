"""Figure 3c: calibration data: the source's correct responses, all of them, references, prompts alone, or C4."""

from pipelines.record import CellRecord
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN, Content, Finding, Sweep, report
from pipelines.report.rules import by_sign
from pipelines.report.settings import NONE, compared_settings, settings_facts, settings_picture
from pipelines.report.tables.measured import contrast, difference
from pipelines.report.tables.table import Row, Table

LABELS = {"srccrt": "SrcCrt", "prompt": "Prompt", "gt": "GT", "srcall": "SrcAll", "c4": "C4"}
_MOST = (
    "Holds if SrcCrt's gain is clearly positive and C4's exceeds half of it by a paired 95 % interval; “in direction "
    "only” if C4's gain exceeds half of it, but not clearly; does not hold otherwise. Undecided where SrcCrt has no "
    "clear gain to keep."
)


@report("fig3c")
def fig3c(sweep: Sweep) -> Content:
    """A row a composition of the calibration set, in the order that the paper found; the merge as it was last."""
    rows = [*LABELS.values(), NONE]

    def composition(cell: CellRecord) -> str:
        given = cell.setting("calibration_data.composition")
        return LABELS.get(given, given)

    table = compared_settings(sweep, "calibration_data", "Calibration data", rows, composition)
    picture = settings_picture(table, "Overall accuracy by calibration data", sweep.scale)
    return Content(table, [picture], _findings(table), settings_facts(table), [
        *notes(sweep, table),
        "SrcCrt: the source's responses that are correct; SrcAll: all of them; GT: reference answers; Prompt: prompts "
        "without an answer; C4: text of no domain.",
    ])  # fmt: skip


def _findings(table: Table) -> list[Finding]:
    rows = {name: table.row(name) for name in (*LABELS.values(), NONE)}

    def over(name: str, others: list[str]):
        return {f"{name} over {other}": difference(rows[name], rows[other], "overall") for other in others}

    return [
        by_sign("SrcCrt is the best calibration data.", over("SrcCrt", ["Prompt", "GT", "SrcAll", "C4"])),
        by_sign("Prompts alone come next, before GT and SrcAll.", over("Prompt", ["GT", "SrcAll"])),
        _keeps(rows["SrcCrt"], rows["C4"], rows[NONE]),
    ]


def _keeps(best: Row | None, other: Row | None, base: Row | None) -> Finding:
    claim = "C4 keeps most of the gain."
    whole, kept = difference(best, base, "overall"), difference(other, base, "overall")
    beyond = contrast([(1.0, other), (-0.5, best), (-0.5, base)], "overall")
    if whole is None or kept is None or beyond is None:
        return Finding(claim, _MOST, OPEN, "Not measured.")
    detail = f"Gain with SrcCrt {whole.text()}, with C4 {kept.text()}; C4 beyond half of SrcCrt's: {beyond.text()}."
    verdict = OPEN if whole.low <= 0 else HOLDS if beyond.low > 0 else LEANS if beyond.value > 0 else FAILS
    return Finding(claim, _MOST, verdict, detail)
