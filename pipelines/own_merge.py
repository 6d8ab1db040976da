"""Bring your own merge: `+experiment=calibrate` calibrates a checkpoint that any tool merged, from a user's own files.

Part of each file's conversations is held out; routing is measured on it before and after, and goes into the model card.
"""

import dataclasses
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

import harc
from harc.tokens import TokenSequence, encode
from pipelines.config import Config, DataSource, HarcConfig
from pipelines.data.read import read_rows
from pipelines.model_card import write_card
from pipelines.nodes import located
from pipelines.routers import device

log = logging.getLogger(__name__)

LONGEST = 4096
USAGE = "python run.py +experiment=calibrate merged=PATH sources=[PATH,PATH] data=[FILE.jsonl,FILE.jsonl] out=PATH"


def calibrate_own(config: Config) -> Path:
    """Writes a complete calibrated checkpoint, with a model card and a figure of its routing, to `config.out`.

    A killed call goes on at the next layer when it is repeated.

    Raises:
        ValueError, OSError: settings, files or checkpoints that don't fit, before any work; nothing is left at `out`.
    """
    settings = _settings(config)
    merged, *sources = [str(located(name)) for name in (config.merged, *config.sources)]
    out = Path(str(config.out)).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there already; choose another out= or remove it")
    fit, held = _read_text(config, merged)
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        report = harc.calibrate(
            merged, sources, fit, out=partial, device=device(), resume=out.with_name(f".{out.name}.layers"), **settings
        )
        before, after = (
            harc.diagnose(model, sources, held, device=device()).to_dict() for model in (merged, str(partial))
        )
        record = {"calibration": report.to_dict(), "before": before, "after": after}
        (partial / "calibration.json").write_text(json.dumps(record, indent=1))
        write_card(partial, merged, sources, config.data, settings, record)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)
    log.info("calibrated checkpoint, model card and routing figure are in %s", out)
    return out


def _settings(config: Config) -> dict[str, Any]:
    missing = [key for key in ("merged", "sources", "data", "out") if not getattr(config, key)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not given; {USAGE}")
    if not isinstance(config.calibrate, HarcConfig):
        raise ValueError(f"calibrate={config.calibrate.method}: +experiment=calibrate takes calibrate=harc")
    if not config.sources or len(config.sources) != len(config.data):
        raise ValueError(f"one data file a source: found {len(config.sources)} sources and {len(config.data)} data")
    if not 0 < config.heldout < 1:
        raise ValueError(f"heldout={config.heldout}: expected a share between 0 and 1")
    settings = dataclasses.asdict(config.calibrate)
    del settings["method"]
    return settings


def _read_text(config: Config, merged: str) -> tuple[list[list[TokenSequence]], list[list[TokenSequence]]]:
    """Each file's conversations as tokens: those to fit, and those held out."""
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    longest = getattr(AutoConfig.from_pretrained(merged, trust_remote_code=False), "max_position_embeddings", LONGEST)
    fit, held = [], []
    for name in config.data:
        rows = []
        for place, row in read_rows(DataSource(path=str(located(name))), None):
            if not row.get("messages") and not isinstance(row.get("prompt"), str):
                raise ValueError(
                    f"{place}: expected `prompt`, `prompt` and `response`, or `messages`; found {sorted(row)}"
                )
            rows.append(row)
        conversations = encode(tokenizer, rows, min(longest, LONGEST))
        random.Random(config.seed).shuffle(conversations)
        count = max(1, round(config.heldout * len(conversations)))
        if len(conversations) - count < 1:
            raise ValueError(f"{name}: {len(conversations)} conversations; at least 2 are needed to hold one out")
        held.append(conversations[:count])
        fit.append(conversations[count:])
        log.info("%s: %d conversations to fit, %d held out", name, len(fit[-1]), len(held[-1]))
    return fit, held
