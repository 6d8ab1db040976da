"""findings.json: what the page of all experiments says of one report."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.record import CellRecord
from pipelines.report.registry import Content, Finding
from pipelines.typed import ShapeError, from_json, to_json

FILE = "findings.json"


@dataclass(frozen=True)
class FailedRow:
    """A row that should have numbers and has none."""

    row: str
    status: str
    why: str


@dataclass(frozen=True)
class Summary:
    """One report. figure: name of its first; rows: of its table; made_at: UTC.

    stages, seconds: how many stages its cells rest on and what these took when they were made.
    stages_made, seconds_made: those of them that this run made.
    """

    experiment: str
    scale: str
    title: str
    made_at: str
    rows: int
    failed: list[FailedRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    figure: str | None = None
    stages: int = 0
    seconds: float = 0.0
    stages_made: int = 0
    seconds_made: float = 0.0


def summarise(experiment: str, scale: str, title: str, content: Content, cells: Sequence[CellRecord]) -> Summary:
    """The summary of a report that is being made.

    Args:
        experiment: its name.
        scale: its scale's.
        title: the heading.
        content: table, findings and figures.
        cells: what it is made of.
    """
    stages = {stage.key: stage for cell in cells for stage in cell.stages}
    made = {stage.key for cell in cells for stage in cell.stages if stage.made}
    return Summary(
        experiment=experiment,
        scale=scale,
        title=title,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        rows=len(content.table.rows),
        failed=[FailedRow(row.name, row.status, row.why) for row in content.table.failed],
        findings=content.findings,
        figure=content.pictures[0].name if content.pictures else None,
        stages=len(stages),
        seconds=sum(stage.seconds for stage in stages.values()),
        stages_made=len(made),
        seconds_made=sum(stages[key].seconds for key in made),
    )


def summary_text(summary: Summary) -> str:
    """The file's text."""
    return json.dumps(to_json(summary), indent=1, ensure_ascii=False) + "\n"


def read_summary(folder: Path) -> Summary | None:
    """The summary in a report's folder; None where no report was made.

    Raises:
        ShapeError: the file is no summary.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShapeError(f"{path}: no JSON ({error}); make the report again") from error
    return from_json(Summary, value, str(path))
