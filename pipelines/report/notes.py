"""What a reader must know of a report's numbers, whatever the experiment."""

from collections.abc import Sequence

from harc.merging.registry import methods
from pipelines.record import CellRecord
from pipelines.report.pooling import replicates, seeds_of
from pipelines.report.registry import Sweep
from pipelines.report.tables.rows import one_line
from pipelines.report.tables.table import Table

_TEXTS = {
    "heldout": "held-out text that was not used for calibration",
    "calibration": "the calibration text itself",
    "sft": "validation text of the fine-tuning data",
}


def notes(sweep: Sweep, table: Table) -> list[str]:
    """On scale, problems, samples, intervals and text, and on rows without a gain and cells that were left out.

    Args:
        sweep: what the report is made of.
        table: with its values filled in.
    """
    out = []
    if not table.paper and sweep.experiment not in ("cells", "world"):
        out.append(f"Measured at scale={sweep.scale}, which is not the paper's: compare rows with one another, not "
                   "with the paper's numbers.")  # fmt: skip
    if any(cell.config.get("rehearse") for cell in sweep.cells):
        out.append("A rehearsal: random weights of the true width, few layers, steps and problems. It shows that every "
                   "stage runs, and what it takes (docs/scales.md); its scores and findings mean nothing.")  # fmt: skip
    seeds = seeds_of(sweep.cells)
    out += _pooled(seeds)
    out += _methods(sweep.cells)
    out += _tuned(sweep.cells)
    out += _accuracy(sweep.cells, len(seeds) > 1)
    out += _grading(sweep.cells, bool(table.paper))
    if any("routing_kl" in row.values for row in table.rows):
        text = " and ".join(sorted({_TEXTS[str(cell.config.get("routing_text", "heldout"))] for cell in sweep.cells}))
        out.append(f"Routing KL (nats) and mismatched decisions (%) are measured on {text}, averaged over layers and "
                   "domains. Time and memory are those of merging plus calibration.")  # fmt: skip
    for row in table.rows:
        if row.status == "ok" and row.baseline and table.main in row.values and table.main not in row.gain:
            out.append(f"{row.name} has no gain: its baseline is missing or answered other problems.")
    for cell in sweep.cells:
        if cell.status == "excluded" and cell.error:
            out.append(f"Left out: {cell.row.name} ({one_line(cell.error)}).")
    return out


def _methods(cells: Sequence[CellRecord]) -> list[str]:
    """Where the merging methods were published."""
    used = {str((cell.config.get("merge") or {}).get("method")) for cell in cells}
    found = [one for name, one in methods().items() if name in used and one.reference]
    named = [f"{one.label} ({one.reference.removeprefix('https://')})" for one in found]  # pages hold no addresses
    return [f"Merging methods: {', '.join(named)}."] if found else []


def _tuned(cells: Sequence[CellRecord]) -> list[str]:
    """Where settings were chosen, if they were."""
    files = sorted({str(one) for one in (cell.config.get("tuned") for cell in cells) if one})
    return [f"Settings were chosen on validation data by +experiment=grid ({', '.join(files)})."] if files else []


def _grading(cells: Sequence[CellRecord], beside_paper: bool) -> list[str]:
    """Whose task files asked and judged, where it is not ours alone or the paper's numbers stand beside."""
    measured = [cell for cell in cells if cell.tasks]
    folders = {str((cell.config.get("evaluate") or {}).get("task_folder") or "") for cell in measured}
    named = ", ".join(sorted(folders - {""}))
    out = [f"Prompts and grading are those of the task files in {named}."] if named else []
    if beside_paper and "" in folders:
        out.append("The paper's numbers come from its authors' task files, whose prompts and grading differ from those "
                   "here (docs/evaluate.md lists how); evaluate.task_folder runs theirs.")  # fmt: skip
    return out


def _pooled(seeds: Sequence[int]) -> list[str]:
    if len(seeds) < 2:
        return []
    return [
        f"Pooled over {len(seeds)} seeds ({', '.join(map(str, seeds))}), each with a world, trainings, samples and "
        "calibration text of its own; values are means of the seeds. Intervals resample the seeds, then the problems "
        f"of each drawn seed. So few seeds understate the variance between them, by 1/{len(seeds)} of it on average.",
    ]


def _accuracy(cells: Sequence[CellRecord], pooled: bool) -> list[str]:
    sizes = sorted({
        (name, len(task.counts), task.samples)
        for cell in cells for one in replicates(cell) for name, task in one.tasks.items() if task.counts
    })  # fmt: skip
    if not sizes:
        return []
    problems = ", ".join(f"{name} {count}" for name, count in sorted({(name, count) for name, count, _ in sizes}))
    samples = "/".join(str(n) for n in sorted({n for _, _, n in sizes}))
    over = "seeds and problems" if pooled else "problems"
    return [
        f"Accuracy in per cent: mean over problems of the share of {samples} samples that are right. "
        f"Problems{' of each seed' if pooled else ''}: {problems}.",
        f"± is half a 95 % bootstrap interval over {over}, resampled within each benchmark; a gain and its interval "
        "are paired over the same problems, and marked * only when it excludes zero.",
    ]
