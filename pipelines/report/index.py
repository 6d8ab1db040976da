"""The page that links all experiments' reports: what each found, whether it is whole, and how long its stages took."""

import csv
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipelines.report.build import write_folder
from pipelines.report.page import VERDICTS
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN
from pipelines.report.style import theme


def build_index(out_root: Path, scale: str, experiments: Sequence[str]) -> Path:
    """Makes `out_root/reports/paper-<scale>/` from the reports that are there, and returns its page.

    Beside report.html, findings.csv has a finding a line. An experiment without a report is a marked gap on both.

    Args:
        out_root: the outputs folder.
        scale: at which the experiments ran.
        experiments: their names, in the page's order.
    """
    reports = Path(out_root) / "reports"
    folder = reports / f"paper-{scale}"
    entries = [_entry(reports, name, scale) for name in experiments]
    write_folder(folder, {"report.html": _page(scale, entries), "findings.csv": _csv(scale, entries)})
    return folder / "report.html"


def _entry(reports: Path, name: str, scale: str) -> dict[str, Any]:
    """What the page says of an experiment: its findings.json and its first figure, or that there is none."""
    folder = reports / f"{name}-{scale}"
    path = folder / "findings.json"
    if not path.is_file():
        return {"name": name, "summary": None, "picture": None}
    summary = json.loads(path.read_text(encoding="utf-8"))
    drawn = folder / f"{summary['figure']}.svg"
    picture = Markup(theme(drawn.read_text(encoding="utf-8"), name)) if summary["figure"] else None
    return {"name": name, "summary": summary, "picture": picture, "link": f"../{folder.name}/report.html"}


def _page(scale: str, entries: Sequence[dict[str, Any]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    own = resources.files(__package__)
    made = [entry["summary"] for entry in entries if entry["summary"]]
    verdicts = [finding["verdict"] for summary in made for finding in summary["findings"]]
    return environment.from_string((own / "index.html.jinja").read_text(encoding="utf-8")).render(
        scale=scale,
        entries=entries,
        css=Markup((own / "report.css").read_text(encoding="utf-8")),
        js=Markup((own / "report.js").read_text(encoding="utf-8")),
        verdicts=VERDICTS,
        counts={verdict: verdicts.count(verdict) for verdict in (HOLDS, LEANS, FAILS, OPEN)},
        whole=sum(not summary["failed"] for summary in made),
        seconds_made=sum(summary["seconds_made"] for summary in made),
    )


def _csv(scale: str, entries: Sequence[dict[str, Any]]) -> str:
    """A finding a line; an experiment without a report has one line that says so."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["experiment", "scale", "claim", "verdict", "detail", "rule", "failed_rows", "made_at"])
    for entry in entries:
        summary = entry["summary"]
        if summary is None:
            writer.writerow([entry["name"], scale, "", "no report", "", "", "", ""])
            continue
        end = [len(summary["failed"]), summary["made_at"]]
        for one in summary["findings"]:
            writer.writerow([entry["name"], scale, *(one[key] for key in ("claim", "verdict", "detail", "rule")), *end])
    return out.getvalue()


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
