"""Makes a report folder: everything is written beside, then takes the place of what was there, whole or not at all."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from pipelines.report.check import check_cells
from pipelines.report.formats import compared, to_comparison_csv, to_csv, to_latex, to_markdown
from pipelines.report.page import Page, render_page
from pipelines.report.registry import Content, Finding, Sweep, find_report
from pipelines.report.style import draw_png, draw_svg
from pipelines.report.table import Row, Table

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


def build_report(
    experiment: Experiment, scale: str, cells: Sequence[dict[str, Any]], out_root: str | Path
) -> ReportResult:
    """Makes `out_root/reports/<experiment>-<scale>/` from the cells of one sweep.

    Args:
        experiment: name, title, and which report is made of it (`report`; by default that of its name, or `cells`).
        scale: the name that stands on everything.
        cells: records as in cells.jsonl, in any order.
        out_root: the outputs folder.

    Raises:
        ReportError: no cells, cells that do not belong together (see check_cells), or no such report.
    """
    name = experiment.report or "cells"
    check_cells(experiment.name, scale, cells)
    make = find_report(name)
    # Tables of the paper are found by the report's name, whatever the experiment that asks for one is called.
    content = make(Sweep(name, experiment.title, scale, cells))
    title = heading(experiment.name, experiment.title, scale)
    folder = Path(out_root) / "reports" / f"{experiment.name}-{scale}"
    drawn = {picture.name: draw_svg(picture) for picture in content.pictures}
    page = Page(
        experiment.name, title, title.removesuffix(f" (scale: {scale})"), scale, content, cells, Path(out_root), drawn
    )
    files: dict[str, str | bytes] = {
        "table.csv": to_csv(content.points or content.table),
        "table.md": to_markdown(content.table, title, _markdown_notes(content.findings, content.notes)),
        "table.tex": to_latex(content.table, title, f"{experiment.name}-{scale}"),
        "cells.jsonl": "".join(json.dumps(cell, ensure_ascii=False) + "\n" for cell in cells),
        "report.html": render_page(page),
        "findings.json": _summary(experiment.name, scale, title, content, cells),
    }
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


def heading(experiment: str, title: str, scale: str) -> str:
    """The name that a report goes by, scale included."""
    words = title or experiment
    return f"{_numbered(experiment)}: {words} (scale: {scale})" if title else f"{_numbered(words)} (scale: {scale})"


def _numbered(name: str) -> str:
    found = re.fullmatch(r"(table|fig)(\d+[a-z]?)", name)
    if found:
        return f"{'Table' if found[1] == 'table' else 'Figure'} {found[2]}"
    return name.replace("_", " ").capitalize()


def _summary(experiment: str, scale: str, title: str, content: Content, cells: Sequence[dict[str, Any]]) -> str:
    """findings.json: what the index of all experiments says of this one. Times are those of its stages, in seconds."""
    stages = {stage["key"]: stage for cell in cells for stage in cell.get("stages") or []}
    made = {stage["key"] for cell in cells for stage in cell.get("stages") or [] if stage["made"]}
    summary = {
        "experiment": experiment,
        "scale": scale,
        "title": title,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": len(content.table.rows),
        "failed": [{"row": row.name, "status": row.status, "why": row.why} for row in content.table.failed],
        "findings": [asdict(finding) for finding in content.findings],
        "figure": content.pictures[0].name if content.pictures else None,
        "stages": len(stages),
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "stages_made": len(made),
        "seconds_made": sum(stages[key]["seconds"] for key in made),
    }
    return json.dumps(summary, indent=1, ensure_ascii=False) + "\n"


def _markdown_notes(findings: Sequence[Finding], notes: Sequence[str]) -> list[str]:
    judged = [f"{one.claim} Here: {one.verdict}. {one.detail} Rule: {one.rule}" for one in findings]
    return [*judged, *notes]


def write_folder(folder: Path, files: dict[str, str | bytes]) -> None:
    """Writes all files into a folder beside the final one, then swaps them: what was there stays whole until then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        _swap(folder, files)


def _swap(folder: Path, files: dict[str, str | bytes]) -> None:
    fresh = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a swap that was cut short: what was there comes back first
    for rest in (fresh, old):
        shutil.rmtree(rest, ignore_errors=True)
    fresh.mkdir()
    try:
        for name, content in files.items():
            with (fresh / name).open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
