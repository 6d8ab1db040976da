"""`+experiment=doctor`: what a merge costs on your text, where its routing flips, and what would give how much back."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import harc
from harc.attribution import Attribution
from harc.tokens import TokenSequence, load_tokenizer
from pipelines.chain.nodes import located
from pipelines.config import Config
from pipelines.report.build import write_folder
from pipelines.report.writers.sheet import render_sheet
from pipelines.stages.inputs import device
from pipelines.tools.doctor.examination import Examination, Trial
from pipelines.tools.doctor.lost_responses import kept_of, lost_of
from pipelines.tools.doctor.page import sheet_of
from pipelines.tools.doctor.record import Findings, record_of
from pipelines.tools.doctor.token_kinds import kinds_of
from pipelines.tools.own_merge import read_text
from pipelines.tools.own_models import given

log = logging.getLogger(__name__)

USAGE = "python run.py +experiment=doctor sources=[PATH,PATH] data=[FILE.jsonl,FILE.jsonl] merged=PATH"
PAGE, RECORD = "doctor.html", "doctor.json"

Change = Callable[..., Any]
REMEDIES: list[tuple[str, str, Change, dict[str, Any]]] = [
    ("HARC", "calibrate=harc", harc.calibrate, {}),
    ("HARC, own targets", "calibrate=harc calibrate.target=source_inputs", harc.calibrate, {"target": "source_inputs"}),
    (
        "Repair, routers and experts",
        "calibrate=repair calibrate.parts=[router,experts]",
        harc.repair,
        {"parts": ("router", "experts")},
    ),
    ("Repair", "calibrate=repair", harc.repair, {}),
]


def examine_own(config: Config) -> Path:
    """Writes doctor.html and doctor.json, logs what is recommended; the page.

    Raises:
        ValueError, OSError: settings, files or checkpoints that don't fit, before any work.
    """
    given(config, USAGE, "sources", "data")
    if len(config.sources) < 2:
        raise ValueError(f"one source: a merge has two or more; {USAGE}")
    if config.cut < 1:
        raise ValueError(f"cut={config.cut}: expected a number of tokens from 1")
    sources = [str(located(name)) for name in config.sources]
    name = Path(str(config.merged)).name if config.merged else "average"
    folder = Path(config.out).expanduser() if config.out else Path(config.outputs) / "reports" / f"doctor-{name}"
    fit, held = read_text(config, sources[0])
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        found = _examine(config, sources, fit, held, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    files: dict[str, str | bytes] = {
        PAGE: render_sheet(sheet_of(found, [RECORD])),
        RECORD: json.dumps(record_of(found), indent=1),
    }
    write_folder(folder, files)
    log.info("%s", found.advice.text)
    for line in found.advice.evidence:
        log.info("  %s", line)
    log.info("the page is %s", folder / PAGE)
    return folder / PAGE


def _examine(
    config: Config,
    sources: list[str],
    fit: list[list[TokenSequence]],
    held: list[list[TokenSequence]],
    scratch: Path,
) -> Findings:
    merged = str(located(config.merged)) if config.merged else str(_average(sources, scratch / "average"))
    log.info("what merging costs, on %s held-out tokens", sum(map(len, (one for part in held for one in part))))
    parts = harc.attribute(merged, sources, held, device=device())
    cut = [_cut(sequences, config.cut) for sequences in fit]
    trials, refused = [], []
    for title, command, change, options in REMEDIES:
        log.info("trying %s on %d tokens", title, _tokens(cut))
        try:
            trials.append(_try(title, command, change, options, merged, sources, cut, held, scratch))
        except ValueError as error:  # it would refuse the whole text as well: said on the page
            log.warning("%s: %s", title, error)
            refused.append(f"{title}: {error}")
    domains = [Path(name).name for name in config.sources]
    exam = Examination(domains, parts, trials, config.seed)
    tokenizer = load_tokenizer(sources[0])
    return Findings(
        merged=config.merged or "a plain average, made for this examination",
        sources=list(config.sources),
        data=list(config.data),
        exam=exam,
        advice=exam.recommend(),
        kinds=[_by_kind(part, kinds_of(tokenizer, text)) for part, text in zip(parts, held, strict=True)],
        kept=[kept_of(part) for part in parts],
        lost=[
            one
            for domain, part, text in zip(domains, parts, held, strict=True)
            for one in lost_of(domain, part, text, tokenizer)
        ],
        fit_tokens=_tokens(fit),
        held_tokens=_tokens(held),
        refused=refused,
    )


def _average(sources: Sequence[str], out: Path) -> Path:
    harc.merge("average", sources, None, out, progress=False)
    return out


def _cut(sequences: Sequence[TokenSequence], tokens: int) -> list[TokenSequence]:
    """The first sequences, as many as make up so many tokens (they are shuffled)."""
    ends = np.cumsum([len(sequence) for sequence in sequences])
    return list(sequences[: int(np.searchsorted(ends, tokens)) + 1])


def _tokens(data: Sequence[Sequence[TokenSequence]]) -> int:
    return sum(len(sequence) for sequences in data for sequence in sequences)


def _try(
    title: str,
    command: str,
    change: Change,
    options: dict[str, Any],
    merged: str,
    sources: Sequence[str],
    cut: Sequence[Sequence[TokenSequence]],
    held: Sequence[Sequence[TokenSequence]],
    scratch: Path,
) -> Trial:
    out = scratch / "trial"
    try:
        report = change(merged, sources, cut, out=out, device=device(), progress=False, **options)
        after = harc.diagnose(out, sources, held, device=device())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return Trial(
        title,
        command,
        [np.array(after.loss_by_sequence[index]) for index in range(len(sources))],
        fmean(fmean(values) for values in after.kl.values()),
        fmean(fmean(values) for values in after.mismatch.values()),
        report.seconds,
        report.peak_memory_gb,
        _tokens(cut),
    )


def _by_kind(part: Attribution, kinds: dict[str, Any]) -> dict[str, list[float] | None]:
    """Share of mismatched decisions of each kind of token, by layer; None for a kind that does not occur."""
    return {
        kind: part.mismatch[:, chosen].double().mean(1).tolist() if bool(chosen.any()) else None
        for kind, chosen in kinds.items()
    }
