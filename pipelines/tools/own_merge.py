"""Bring your own merge: `+experiment=calibrate` calibrates a checkpoint that any tool merged, or repairs it.

The text is in files of the user's own. Part of each file's conversations is held out; routing is measured on it before
and after, and goes into the model card.
"""

import dataclasses
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

import harc
from harc.files import publish
from harc.patching import SUFFIX, SameModelError
from harc.tokens import TokenSequence, encode, load_tokenizer
from pipelines.chain.nodes import located
from pipelines.config import Config
from pipelines.data.read import read_rows
from pipelines.data.source import DataSource
from pipelines.stages.calibrate import HarcConfig
from pipelines.stages.inputs import device
from pipelines.stages.repair import RepairConfig
from pipelines.tools.model_card import write_card
from pipelines.tools.own_models import given

log = logging.getLogger(__name__)

LONGEST = 4096
USAGE = "python run.py +experiment=calibrate merged=PATH sources=[PATH,PATH] data=[FILE.jsonl,FILE.jsonl] out=PATH"


def calibrate_own(config: Config) -> Path:
    """Writes a complete calibrated checkpoint, with a model card and a figure of its routing, to `config.out`.

    Beside it goes a patch, `<out>.patch.safetensors`: what it differs by from the merge.

    A killed call goes on at the next layer when it is repeated.

    Raises:
        ValueError, OSError: settings, files or checkpoints that don't fit, before any work; nothing is left at `out`.
    """
    chosen = _chosen(config)
    settings = chosen.settings()
    merged, *sources = [str(located(name)) for name in (config.merged, *config.sources)]
    out = Path(str(config.out)).expanduser()
    patch = out.with_name(f"{out.name}{SUFFIX}")
    if patch.exists() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ValueError(f"{patch if patch.exists() else out}: there already; choose another out= or remove it")
    fit, held = read_text(config, merged)
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        change = harc.repair if isinstance(chosen, RepairConfig) else harc.calibrate
        dtype: str | None = getattr(chosen, "dtype", None)
        own: dict[str, Any] = {"dtype": getattr(torch, dtype), "rounded": False} if dtype else {}
        report = change(
            merged,
            sources,
            fit,
            out=partial,
            settings=settings,
            device=device(),
            memory_budget_gb=chosen.memory_budget_gb,
            resume=out.with_name(f".{out.name}.layers"),
            **own,
        )
        before, after = (
            harc.diagnose(model, sources, held, device=device()).to_dict() for model in (merged, str(partial))
        )
        name = "repair" if isinstance(chosen, RepairConfig) else "calibration"
        record = {name: report.to_dict(), "before": before, "after": after}
        (partial / "calibration.json").write_text(json.dumps(record, indent=1))
        try:
            changed = harc.save_patch(partial, merged, patch)  # beside the model: a loader might take it for weights
        except SameModelError:  # alpha=auto kept every router
            changed = None
        write_card(partial, merged, sources, config.data, dataclasses.asdict(settings), record, changed)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        patch.unlink(missing_ok=True)
        raise
    publish(partial, out)
    log.info(
        "calibrated checkpoint, model card and routing figure are in %s, what changed in %s",
        out,
        patch if changed else "nothing",
    )
    return out


def _chosen(config: Config) -> HarcConfig | RepairConfig:
    given(config, USAGE, "merged", "sources", "data", "out")
    if not isinstance(config.calibrate, HarcConfig | RepairConfig):
        raise ValueError(f"calibrate={config.calibrate.method}: +experiment=calibrate takes harc or repair")
    if isinstance(config.calibrate, HarcConfig) and config.calibrate.control != "none":
        raise ValueError(
            f"calibrate.control={config.calibrate.control}: a negative control is no calibration; leave it out"
        )
    return config.calibrate


def read_text(config: Config, merged: str) -> tuple[list[list[TokenSequence]], list[list[TokenSequence]]]:
    """Each file's conversations as tokens: those to fit, and those held out.

    Raises:
        ValueError, OSError: files that cannot be read, or with too few conversations.
    """
    if not config.sources or len(config.sources) != len(config.data):
        raise ValueError(f"one data file a source: found {len(config.sources)} sources and {len(config.data)} data")
    if not 0 < config.heldout < 1:
        raise ValueError(f"heldout={config.heldout}: expected a share between 0 and 1")
    tokenizer = load_tokenizer(merged)
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
