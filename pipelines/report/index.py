"""The page that links all experiments' reports: what each found, whether it is whole, and how long its stages took."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipelines.console import duration
from pipelines.report.build import pooled, replicate, write_folder
from pipelines.report.figures.style import theme
from pipelines.report.registry import FAILS, HOLDS, LEANS, OPEN
from pipelines.report.summary import Summary, read_summary
from pipelines.report.writers.page import VERDICTS


def build_index(
    out_root: Path,
    scale: str,
    experiments: Sequence[str],
    left_out: Mapping[str, str] | None = None,
    *,
    beyond: Sequence[str] = (),
    seed: int = 0,
    seeds: int = 1,
) -> Path:
    """Makes `out_root/reports/paper-<scale>/` from the reports that are there, and returns its page.

    Beside report.html, findings.csv has a finding a line. An experiment without a report is a marked gap on both.

    Args:
        out_root: the outputs folder.
        scale: at which the experiments ran.
        experiments: their names, in the page's order.
        left_out: those that the scale doesn't run -> the reason, which stands in their place.
        beyond: those of them that are not the paper's, which have a section of their own at the page's end.
        seed: of the replicate.
        seeds: how many replicates the reports pool.
    """
    reports = Path(out_root) / "reports"
    place = pooled(scale, seeds) if seeds > 1 else replicate(scale, seed)
    folder = reports / f"paper-{place}"
    reasons = left_out or {}
    entries = [
        Entry(name, left_out=reasons[name]) if name in reasons else _entry(reports, name, place) for name in experiments
    ]
    write_folder(folder, {"report.html": _page(scale, entries, beyond), "findings.csv": _csv(scale, entries)})
    return folder / "report.html"


@dataclass(frozen=True)
class Entry:
    """What the page says of an experiment: its summary, first figure and link; None where there is no report.

    left_out: why the scale doesn't run it.
    """

    name: str
    summary: Summary | None = None
    picture: Markup | None = None
    link: str | None = None
    left_out: str | None = None


def _entry(reports: Path, name: str, place: str) -> Entry:
    folder = reports / f"{name}-{place}"
    summary = read_summary(folder)
    if summary is None:
        return Entry(name)
    drawn = (folder / f"{summary.figure}.svg").read_text(encoding="utf-8") if summary.figure else None
    picture = Markup(theme(drawn, name)) if drawn is not None else None
    return Entry(name, summary, picture, f"../{folder.name}/report.html")


def _page(scale: str, entries: Sequence[Entry], beyond: Sequence[str]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    own, looks = resources.files(__package__), resources.files("pipelines.report.writers")
    made = [entry.summary for entry in entries if entry.summary]
    verdicts = [finding.verdict for summary in made for finding in summary.findings]
    return environment.from_string((own / "index.html.jinja").read_text(encoding="utf-8")).render(
        scale=scale,
        entries=entries,
        sections={
            None: [entry for entry in entries if entry.name not in beyond],
            "Beyond the paper": [entry for entry in entries if entry.name in beyond],
        },
        css=Markup((looks / "report.css").read_text(encoding="utf-8")),
        js=Markup((looks / "report.js").read_text(encoding="utf-8")),
        verdicts=VERDICTS,
        counts={verdict: verdicts.count(verdict) for verdict in (HOLDS, LEANS, FAILS, OPEN)},
        whole=sum(not summary.failed for summary in made),
        seconds_made=sum(summary.seconds_made for summary in made),
    )


def _csv(scale: str, entries: Sequence[Entry]) -> str:
    """A finding a line; an experiment without a report has one line that says so."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["experiment", "scale", "claim", "verdict", "detail", "rule", "failed_rows", "made_at"])
    for entry in entries:
        summary = entry.summary
        if summary is None:
            verdict = "left out" if entry.left_out else "no report"
            writer.writerow([entry.name, scale, "", verdict, entry.left_out or "", "", "", ""])
            continue
        end = [len(summary.failed), summary.made_at]
        for one in summary.findings:
            writer.writerow([entry.name, scale, one.claim, one.verdict, one.detail, one.rule, *end])
    return out.getvalue()
