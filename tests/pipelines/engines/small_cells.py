"""Cells of random models, each a merge and its diagnosis, for tests that run real stages in other processes.

The merging methods are a plugin's: one dies the first time it is asked for, one always, one waits for ever.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.config import Config, schema
from pipelines.config.plugins import load_modules
from pipelines.graph.make import Making
from pipelines.places import CONF
from pipelines.record import CellRecord
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


ROWS = [
    ["merge=average"],
    ["merge=dies_once", "merge.trace=once"],
    ["merge=dies"],
    ["merge=ties", "scale.domains.math.heldout.path=no_records.jsonl"],
]
STATUS = {
    "merge tiny-average": "made", "diagnose tiny-average": "made",
    "merge tiny-dies_once": "made", "diagnose tiny-dies_once": "made",
    "merge tiny-dies": "failed", "diagnose tiny-dies": "skipped",
    "merge tiny-ties": "made", "diagnose tiny-ties": "failed",
}  # fmt: skip


def make_folder(folder: Path) -> None:
    """Checkpoints, text and the plugin, for `overrides` in that working directory."""
    (folder / "wrong_merges.py").write_text(PLUGIN)
    write_jsonl(folder / "text.jsonl", sums(12))
    (folder / "no_records.jsonl").write_text('{"prompt": 3}\n')
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


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The folder as working directory, with Hydra initialised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield


def status(made: Making) -> dict[str, str]:
    """Stage and label -> what came of it."""
    tasks = made.graph.tasks
    return {f"{tasks[key].stage} {tasks[key].label}": result.status for key, result in made.results.items()}


def comparable(record: CellRecord) -> CellRecord:
    """The record without what differs between two runs of the same work: folders, time, memory."""
    stages = [dataclasses.replace(one, path="", seconds=0, peak_memory_gb=None) for one in record.stages]
    config = {**record.config, "outputs": "", "tracker": {}, "engine": {}}
    return dataclasses.replace(record, stages=stages, config=config, runtime_s=None, peak_memory_gb=None)


@contextlib.contextmanager
def killing(trace: Path) -> Iterator[None]:
    """Meanwhile, the process that writes its number to the trace is killed: the merge `waits`, in its middle."""
    over = threading.Event()

    def kill() -> None:
        while not trace.exists():
            if over.wait(0.1):
                return
        os.kill(int(trace.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
