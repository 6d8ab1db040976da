"""Cells of random models, each a merge and its diagnosis, for tests that run real stages in other processes.

The merging methods are a plugin's: one dies the first time it is asked for, one always, one waits for ever.
"""

from pathlib import Path

import torch
from hydra import compose
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.config import Config, schema
from pipelines.config.plugins import load_modules
from tests.pipelines.small_world import ARCHITECTURE, make_tokenizer, sums, write_jsonl

PLUGIN = '''
"""Merges that go wrong: each averages, if it comes to that."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from harc.merging import MergeSettings, method, setting


@dataclass(frozen=True)
class TraceSettings(MergeSettings):
    trace: str = setting("trace", "file that gets the process's number")


def average(base, sources):
    return base + sum(source - base for source in sources) / len(sources)


@method("dies_once", label="Dies once", settings=TraceSettings)
def dies_once(base, sources, weights, settings):
    if not Path(settings.trace).exists():
        Path(settings.trace).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return average(base, sources)


@method("dies", label="Dies", settings=TraceSettings)
def dies(base, sources, weights, settings):
    os.kill(os.getpid(), signal.SIGKILL)


@method("waits", label="Waits", settings=TraceSettings)
def waits(base, sources, weights, settings):
    if not Path(settings.trace).exists():
        beside = Path(settings.trace).with_suffix(".part")
        beside.write_text(str(os.getpid()))
        beside.rename(settings.trace)
        signal.pause()
    return average(base, sources)
'''


def make_folder(folder: Path) -> None:
    """Checkpoints, text and the plugin, for `overrides` in that working directory."""
    (folder / "wrong_merges.py").write_text(PLUGIN)
    write_jsonl(folder / "text.jsonl", sums(12))
    tokenizer = make_tokenizer()
    shape = AutoConfig.for_model(
        "olmoe", **ARCHITECTURE.settings, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=None
    )
    for seed, name in enumerate(("base", "math", "code")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def overrides(folder: Path, outputs: Path) -> list[str]:
    """What a cell is composed with: nothing is trained, calibrated or generated."""
    return [
        "plugins=[wrong_merges]", f"outputs={outputs}", "calibrate=none", "evaluate.tasks=[]", "tracker=none",
        "evaluate.engine=transformers", f"scale.base={folder}/base", "scale.world=null", "scale.max_length=64",
        *(f"scale.domains.{name}.checkpoint={folder}/{name}" for name in ("math", "code")),
        *(f"scale.domains.{name}.heldout.path={folder}/text.jsonl" for name in ("math", "code")),
    ]  # fmt: skip


def cells(folder: Path, outputs: Path, *rows: list[str]) -> list[Config]:
    """The configurations of rows, each the overrides of its own. Hydra is initialised, in `folder`."""
    load_modules(["wrong_merges"])
    schema.register()
    return [OmegaConf.to_object(compose("config", overrides=[*overrides(folder, outputs), *row])) for row in rows]
