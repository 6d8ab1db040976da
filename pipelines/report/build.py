"""Makes a report folder: everything is written beside, then takes the place of what was there, whole or not at all."""

import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harc.files import publish, write_synced
from pipelines.record import CellRecord, record_lines
from pipelines.report.check import check_cells, check_replicates
from pipelines.report.figures.style import draw_png, draw_svg
from pipelines.report.pooling import pool, seeds_of
from pipelines.report.registry import Finding, Sweep, find_report
from pipelines.report.summary import FILE, summarise, summary_text
from pipelines.report.sweep import whole_sweep
from pipelines.report.tables.evidence import NOTES as EVIDENCE_NOTES
from pipelines.report.tables.evidence import power_line
from pipelines.report.tables.table import Row, Table
from pipelines.report.writers.formats import compared, to_comparison_csv, to_csv, to_latex, to_markdown
from pipelines.report.writers.page import Page, render_page
from pipelines.runner.claims import Claims

log = logging.getLogger(__name__)


class Experiment(Protocol):
    """What a report needs of an ExperimentConfig."""

    name: str
    report: str | None
    title: str


@dataclass(frozen=True)
class ReportResult:
    """A finished report. failed: rows that should have numbers and have none (the exit status is theirs to set)."""

    path: Path
    table: Table
    failed: list[Row]
    title: str
    scale: str
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def build_report(experiment: Experiment, scale: str, cells: Sequence[CellRecord], out_root: str | Path) -> ReportResult:
    """Makes `out_root/reports/<experiment>-<scale>/` from the cells of one sweep; see `replicate` for a seed's own.

    Args:
        experiment: name, title, and which report is made of it (`report`; by default that of its name, or `cells`).
        scale: the name that stands on everything.
        cells: records, in any order.
        out_root: the outputs folder.

    Raises:
        ReportError: no cells, cells that do not belong together (see check_cells), or no such report.
    """
    check_cells(experiment.name, scale, cells)
    seed = cells[0].seed or 0
    where = f"{scale}, seed {seed}" if seed else scale
    return _build(experiment, scale, cells, cells, Path(out_root), where, replicate(scale, seed))


def build_pooled_report(
    experiment: Experiment, scale: str, cells: Sequence[CellRecord], out_root: str | Path
) -> ReportResult:
    """Makes `out_root/reports/<experiment>-<scale>-<n>seeds/` from the cells of a sweep over n seeds, as one report.

    Values are means of the seeds, intervals are over seeds and then problems (pipelines/report/pooling.py).

    Raises:
        ReportError: as `build_report`, of each seed's cells, and versions that differ between seeds.
    """
    seeds = seeds_of(cells)
    check_replicates(experiment.name, scale, cells)
    where = f"{scale}, seeds {', '.join(map(str, seeds))}"
    return _build(experiment, scale, pool(cells), cells, Path(out_root), where, pooled(scale, len(seeds)))


def _build(
    experiment: Experiment,
    scale: str,
    cells: Sequence[CellRecord],
    records: Sequence[CellRecord],
    out_root: Path,
    where: str,
    place: str,
) -> ReportResult:
    """Makes a report's folder.

    records: what the cells were made from; where, place: scale and seeds, in words and in the folder's name.
    """
    name = experiment.report or "cells"
    make = find_report(name)
    # Tables of the paper are found by the report's name, whatever the experiment that asks for one is called.
    content = make(Sweep(name, experiment.title, scale, whole_sweep(cells)))
    if line := power_line(content.evidence):
        content.notes.append(line)
    title = heading(experiment.name, experiment.title, where)
    folder = out_root / "reports" / f"{experiment.name}-{place}"
    drawn = {picture.name: draw_svg(picture) for picture in content.pictures}
    page = Page(
        experiment.name, title, title.removesuffix(f" (scale: {where})"), scale, content, cells, out_root, drawn
    )
    files: dict[str, str | bytes] = {
        "table.csv": to_csv(content.points or content.table),
        "table.md": to_markdown(content.table, title, _markdown_notes(content.findings, content.notes)),
        "table.tex": to_latex(content.table, title, folder.name),
        "cells.jsonl": record_lines(records),
        "report.html": render_page(page),
        FILE: summary_text(summarise(experiment.name, scale, title, content, cells)),
    }
    if content.evidence:
        files["evidence.csv"] = to_csv(content.evidence)
        files["evidence.md"] = to_markdown(content.evidence, f"{title}: evidence", list(EVIDENCE_NOTES))
    files |= content.files
    if content.points:
        files["summary.csv"] = to_csv(content.table)
    if compared(content.table):
        files["comparison.csv"] = to_comparison_csv(content.table)
    for picture in content.pictures:
        files |= {f"{picture.name}.svg": drawn[picture.name], f"{picture.name}.png": draw_png(picture)}
    write_folder(folder, files)
    for row in content.table.failed:
        log.error("%s: %s", row.name, row.gap)
    return ReportResult(folder, content.table, content.table.failed, title, scale, content.findings, sorted(files))


def replicate(scale: str, seed: int) -> str:
    """The scale's name in that of a report's folder: `tiny`, or `tiny-seed1` for a replicate of another seed than 0."""
    return f"{scale}-seed{seed}" if seed else scale


def pooled(scale: str, count: int) -> str:
    """The same for a report of several seeds: `tiny-3seeds`."""
    return f"{scale}-{count}seeds"


def heading(experiment: str, title: str, scale: str) -> str:
    """The name that a report goes by, scale included."""
    words = title or experiment
    return f"{_numbered(experiment)}: {words} (scale: {scale})" if title else f"{_numbered(words)} (scale: {scale})"


def _numbered(name: str) -> str:
    found = re.fullmatch(r"(table|fig)(\d+[a-z]?)", name)
    if found:
        return f"{'Table' if found[1] == 'table' else 'Figure'} {found[2]}"
    return name.replace("_", " ").capitalize()


def _markdown_notes(findings: Sequence[Finding], notes: Sequence[str]) -> list[str]:
    judged = [f"{one.claim} Here: {one.verdict}. {one.detail} Rule: {one.rule}" for one in findings]
    return [*judged, *notes]


def write_folder(folder: Path, files: dict[str, str | bytes]) -> None:
    """Writes all files into a folder beside the final one, then swaps them: what was there stays whole until then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Claims(folder.parent / ".claims").claimed(folder.name):
        _swap(folder, files)


def _swap(folder: Path, files: dict[str, str | bytes]) -> None:
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        for name, content in files.items():
            write_synced(fresh / name, content)
        publish(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
