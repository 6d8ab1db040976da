"""`+experiment=check`: harc.check on a checkpoint, as a page, as JSON and as an exit status."""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import harc
from harc.checking.findings import CheckReport, Finding, Movement
from harc.checking.loading import tolerance
from pipelines.chain.nodes import located
from pipelines.config import Config
from pipelines.report.build import write_folder
from pipelines.report.figures.heat import Heat, heat_plot
from pipelines.report.figures.style import Picture
from pipelines.report.registry import Fact
from pipelines.report.writers.sheet import Grid, Point, Sheet, render_sheet
from pipelines.tools.own_models import given

log = logging.getLogger(__name__)

USAGE = "python run.py +experiment=check model=PATH sources=[PATH,PATH] base=PATH"
PAGE, RECORD = "check.html", "check.json"


def check_own(config: Config) -> int:
    """Writes check.html and check.json and logs what was found; 0 for a sound checkpoint, 1 for another.

    Raises:
        ValueError, OSError: settings, sources or a base that cannot be used.
    """
    given(config, USAGE, "model")
    model, *sources = [str(located(name)) for name in (config.model, *config.sources)]
    report = harc.check(model, sources, located(config.base), engines=config.engines)
    name = Path(model).name
    folder = Path(config.out).expanduser() if config.out else Path(config.outputs) / "reports" / f"check-{name}"
    page = render_sheet(sheet_of(report))
    write_folder(folder, {PAGE: page, RECORD: json.dumps(report.to_dict(), indent=1)})
    for finding in report.findings:
        log.log(logging.ERROR if finding.severity == "problem" else logging.INFO, "%s", finding.text)
    for left in report.left_out:
        log.info("not checked: %s", left)
    log.info("%s: %s; the page is %s", name, verdict(report), folder / PAGE)
    return 0 if report.sound else 1


def verdict(report: CheckReport) -> str:
    """The outcome in a line."""
    if not report.sound:
        return f"not sound: {len(report.problems)} problem{'s' if len(report.problems) > 1 else ''}"
    return "sound: everything that was checked is as it should be"


def sheet_of(report: CheckReport) -> Sheet:
    """The page of a check."""
    names = [Path(source).name for source in report.sources]
    models = [("checked", report.model), *(("source", source) for source in report.sources)]
    return Sheet(
        "check",
        f"Check of {Path(report.model).name}",
        report.sound,
        verdict(report)[0].upper() + verdict(report)[1:] + ".",
        [*models, *([("base", report.base)] if report.base else [])],
        _facts(report),
        [_point(finding) for finding in report.findings],
        _pictures(report.movements) if report.sources else [],
        _grids(report, names),
        _notes(report),
        [RECORD],
    )


def _facts(report: CheckReport) -> list[Fact]:
    facts = [
        Fact("Tensors", f"{report.tensors:,}", f"{report.parameters / 1e6:,.1f} million parameters"),
        Fact("Problems", str(len(report.problems)), f"{len(report.findings) - len(report.problems)} notes"),
    ]
    moved = [one for one in report.movements if one.explained is not None]
    if moved:
        share = median(one.explained for one in moved if one.explained is not None)
        facts.append(
            Fact(
                "Explained by the sources",
                f"{100 * share:.0f} %",
                "cosine of a movement with the sources' span, median",
            )
        )
    for engine, found in report.engines.items():
        if "error" in found:
            facts.append(Fact(engine, "fails", "does not load it"))
            continue
        difference = found.get("largest_difference")
        note = "loads it"
        if difference is not None:
            note = f"predicts as the other engine does within {difference:.1e} nats (tolerance {tolerance():g})"
        facts.append(Fact(engine, "loads", note))
    return facts


def _point(finding: Finding) -> Point:
    problem = finding.severity == "problem"
    label = f"{finding.topic}" if problem else f"{finding.topic}, a note"
    return Point("bad" if problem else "open", label, finding.text, finding.tensors)


def _pictures(movements: Sequence[Movement]) -> list[Picture]:
    """How far each piece moved, in proportion to its sources: by layer and expert, and by layer and kind."""
    experts: dict[tuple[int, int], list[float]] = defaultdict(list)
    kinds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for one in movements:
        sources = fmean(one.sources_moved) if one.sources_moved else 0.0
        if one.layer is None or sources == 0:
            continue
        if one.expert is not None:
            experts[one.layer, one.expert].append(one.moved / sources)
        else:
            kinds[one.layer, one.kind].append(one.moved / sources)
    layers = sorted({layer for layer, _ in (*experts, *kinds)})
    if not layers:
        return []
    rows = [str(layer) for layer in layers]
    numbers = sorted({expert for _, expert in experts})
    names = list(dict.fromkeys(kind for _, kind in kinds))
    panels = []
    if numbers:
        cells = [[min(experts[layer, e]) if (layer, e) in experts else None for e in numbers] for layer in layers]
        panels.append(Heat("Experts", rows, [str(e) for e in numbers], cells))
    if names:
        cells = [[fmean(kinds[layer, k]) if (layer, k) in kinds else None for k in names] for layer in layers]
        panels.append(Heat("All else", rows, [_short(name) for name in names], cells))
    return [
        heat_plot(
            "movement",
            panels,
            title="How far each part moved from the base",
            caption="In proportion to how far its sources moved, their mean. 0: as the base. Two sources that moved at "
            "right angles give 0.71 when they are averaged, 1.41 when they are added; 1 is also what a copy of one "
            "gives. Of an expert, the matrix that moved least.",
            axis="moved / sources moved",
            rows="layer",
        )
    ]


def _grids(report: CheckReport, names: Sequence[str]) -> list[Grid]:
    kinds: dict[str, list[Movement]] = defaultdict(list)
    for one in report.movements:
        kinds[one.kind].append(one)
    if not kinds:
        return []
    heads = ["Kind", "Parts", "Moved, median", "least", "most", "Sources moved"]
    heads += [f"Cosine with {name}" for name in names] + (["Explained", "least"] if names else [])
    rows = []
    for kind, members in kinds.items():
        moved = [100 * one.moved for one in members]
        sources = [100 * fmean(one.sources_moved) for one in members if one.sources_moved]
        row = [kind, str(len(members)), *(f"{value:.2f} %" for value in (median(moved), min(moved), max(moved)))]
        row.append(f"{median(sources):.2f} %" if sources else "–")
        for index in range(len(names)):
            row.append(_median([one.cosines[index] for one in members if len(one.cosines) == len(names)]))
        explained = [one.explained for one in members if one.explained is not None]
        row += [_median(explained), f"{min(explained):.3f}" if explained else "–"] if names else []
        rows.append(row)
    note = (
        "Moved: ‖m − b‖ / ‖b‖ of each tensor, of each expert by itself. Explained: cosine of the movement with its "
        "projection on the sources' movements; 1 for any weighted sum, less for methods that drop, clip or fit."
        if report.base
        else "Without a base, movements are from the sources' mean."
    )
    return [Grid("Movement by kind", heads, rows, [note])]


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.3f}" if known else "–"


def _notes(report: CheckReport) -> list[str]:
    said = [f"Checked: {', '.join(report.checked)}, in {report.seconds:.1f} s. Layers and experts count from 0."]
    said += [f"Not checked: {one}." for one in report.left_out]
    if any("largest_difference" in one for one in report.engines.values()):
        said.append(
            f"Both engines were given the same tokens; log-probabilities of these and of the most probable ones may "
            f"differ by {tolerance():g} nats, what the order of sums makes of it in this machine's arithmetic."
        )
    return said


def _short(kind: str) -> str:
    return kind.rsplit(".", 1)[-1] if not kind.endswith(("gate", "router")) else "router"
