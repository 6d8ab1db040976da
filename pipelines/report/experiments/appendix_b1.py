"""Appendix B.1: iterations and residuals of conjugate gradients by layer, the published solver and ours.

The paper's finding, fewer iterations with three models than with two, is about how well Λ̃ is conditioned. A
preconditioner changes just that, so that it is judged on the published solver, which has none.
"""

from statistics import fmean

from pipelines.record import CellRecord, LayerResult
from pipelines.report.figures.lines import LinePanel, Series, lines_plot
from pipelines.report.figures.style import Picture
from pipelines.report.notes import notes
from pipelines.report.registry import FAILS, HOLDS, OPEN, Content, Fact, Finding, Sweep, report
from pipelines.report.tables.rows import rows_by_key
from pipelines.report.tables.table import Column, Row, Table

SOLVERS = {"published": "published: no preconditioner, fp32", "refined": "preconditioned, refined"}
MODELS = ("2", "3")
KEYS = [Column("solver", "Solver", kind="key"), Column("models", "Models merged", kind="key")]
COLUMNS = [
    Column("iterations", "Iterations a layer", "CG", digits=1, interval=False),
    Column("most_iterations", "most", digits=0, interval=False),
    Column("carried_residual", "Carried residual, largest", "carried", significant=2, interval=False),
    Column("true_residual", "True residual, largest", "true", significant=2, interval=False),
    Column("short", "Layers short of the tolerance", "short", digits=0, interval=False),
    Column("solve_s", "Fits, all layers", "s", unit="s", significant=3, interval=False),
]
POINTS = [
    Column("layer", "Layer", kind="key"),
    Column("iterations", "Iterations", digits=0, interval=False),
    Column("carried_residual", "Carried residual", significant=2, interval=False),
    Column("true_residual", "True residual", significant=2, interval=False),
]


@report("appendix_b1")
def appendix_b1(sweep: Sweep) -> Content:
    """A row for each solver and number of models; the plotted points are its layers."""
    expected = [(solver, count) for solver in SOLVERS.values() for count in MODELS]
    rows = rows_by_key(sweep.cells, expected, _key, baseline_of=lambda key: None)
    for row in rows:
        _measure(row)
    table = Table(KEYS, COLUMNS, rows, main="")
    points = Table([*KEYS, POINTS[0]], POINTS[1:], [point for row in rows for point in _points(row)], main="")
    content = Content(table, [_picture(rows, sweep.scale)], [_finding(table)], _facts(rows), notes(sweep, table))
    content.points = points
    content.notes.append(
        "Residuals are relative to the right-hand side. The carried one is what conjugate gradients update from "
        "iteration to iteration, and what the published solver stops at; the true one is computed from the weight. "
        "Both solvers begin at the merged router and stop at calibrate.tol or calibrate.max_iter."
    )
    return content


def _key(cell: CellRecord) -> tuple[str, str]:
    solver = str(cell.setting("calibrate.solver"))
    return SOLVERS.get(solver, solver), str(len(cell.setting("domains")))


def _measure(row: Row) -> None:
    row.label = f"{row.key[0]}, {row.key[1]} models"
    layers = _layers(row)
    if row.status == "ok" and layers:
        row.values = {
            "iterations": fmean(layer.iterations for layer in layers),
            "most_iterations": float(max(layer.iterations for layer in layers)),
            "carried_residual": max(layer.residuals[-1] for layer in layers),
            "true_residual": max(layer.residual or 0.0 for layer in layers),
            "short": float(sum(not layer.converged for layer in layers)),
            "solve_s": sum(layer.seconds or 0.0 for layer in layers),
        }


def _layers(row: Row) -> list[LayerResult]:
    return row.cell.calibration.layers if row.cell and row.cell.calibration else []


def _points(row: Row) -> list[Row]:
    """A point a layer; a gap where the row is one."""
    if row.status != "ok":
        return [Row((*row.key, ""), row.status, row.why)]
    return [
        Row(
            (*row.key, str(layer.layer + 1)),
            status="ok",
            values={
                "iterations": float(layer.iterations),
                "carried_residual": layer.residuals[-1],
                "true_residual": layer.residual or 0.0,
            },
        )
        for layer in _layers(row)
    ]


def _picture(rows: list[Row], scale: str) -> Picture:
    panels = []
    for name in SOLVERS.values():
        series = [
            Series(
                f"{row.key[1]} models",
                f"{row.key[1]} models",
                [layer.layer + 1 for layer in _layers(row)],
                [float(layer.iterations) for layer in _layers(row)],
                dashed=row.key[1] == "2",
            )
            for row in rows
            if row.key[0] == name and _layers(row)
        ]
        panels.append(LinePanel(name, "layer", series, whole=True))
    return lines_plot(
        "figure",
        panels,
        title="Iterations of conjugate gradients by layer",
        caption="Left the published solver, right ours; dashed with two models merged, solid with three. WUDI.",
        axis="Iterations",
        scale=scale,
        zero=True,
    )


def _finding(table: Table) -> Finding:
    published, refined = ([table.row(solver, count) for count in MODELS] for solver in SOLVERS.values())
    two, three = (row.values.get("iterations") if row else None for row in published)
    if two is None or three is None:
        verdict, detail = OPEN, "The published solver was not run with both."
    else:
        verdict = HOLDS if three < two else FAILS
        detail = f"Published solver: {three:.1f} iterations a layer with three models, {two:.1f} with two."
        ours = [row.values["iterations"] for row in refined if row and "iterations" in row.values]
        if len(ours) == len(MODELS):
            detail += f" With our preconditioner: {ours[1]:.1f} and {ours[0]:.1f}."
    return Finding(
        "Conjugate gradients need fewer iterations with three models than with two.",
        "Holds if the published solver, which has no preconditioner, takes fewer iterations a layer in the mean over "
        "layers with three models than with two.",
        verdict,
        detail,
    )


def _facts(rows: list[Row]) -> list[Fact]:
    return [
        Fact(row.label, f"{row.values['iterations']:.0f} iterations", f"a layer; true residual to "
             f"{row.values['true_residual']:.1e}")
        for row in rows if "iterations" in row.values
    ]  # fmt: skip
