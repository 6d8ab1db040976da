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
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.config import Config, schema
from pipelines.config.plugins import load_modules
from pipelines.graph.make import Making, make
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


# What the engines of clusters are tried on besides: a merge that is killed from outside, and a row with HARC.
MORE_STATUS = {
    "merge tiny-waits": "made", "diagnose tiny-waits": "made", "sample tiny-math-gt": "made",
    "sample tiny-code-gt": "made", "calibrate tiny-average-harc": "made", "diagnose tiny-average-harc": "made",
}  # fmt: skip


def more_rows(folder: Path) -> list[list[str]]:
    """The rows of `MORE_STATUS`."""
    data = [f"scale.domains.{name}.calibration.path={folder}/text.jsonl" for name in ("math", "code")]
    calibrated = ["merge=average", "calibrate=harc", "calibration_data=gt", "scale.sample.min_kept=1", *data]
    return [["merge=waits", "merge.trace=waiting"], calibrated]


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


def tuned(folder: Path, *launch: str) -> list[str]:
    """A row whose math source is tuned, four steps of four sequences. launch: in how many processes, and where."""
    finetune = {"steps": 4, "epochs": "null", "batch_size": 4, "micro_batch_size": 2, "max_length": 64}
    return [
        "merge=average", "scale.domains.math.checkpoint=null", f"scale.domains.math.train.path={folder}/text.jsonl",
        *(f"scale.finetune.{key}={value}" for key, value in finetune.items()), *launch,
    ]  # fmt: skip


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
    """The record without what differs between two runs of the same work: folders, time, memory, who made it."""
    stages = [dataclasses.replace(one, path="", made=True, seconds=0, peak_memory_gb=None) for one in record.stages]
    calibration = record.calibration
    if calibration is not None:
        layers = [dataclasses.replace(one, seconds=None, other=untimed(one.other)) for one in calibration.layers]
        calibration = dataclasses.replace(
            calibration, layers=layers, seconds=None, peak_memory_gb=None, other=untimed(calibration.other)
        )
    config = {**record.config, "outputs": "", "tracker": {}, "engine": {}}
    return dataclasses.replace(
        record, stages=stages, config=config, calibration=calibration, runtime_s=None, peak_memory_gb=None
    )


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """The values without those that are seconds."""
    return {key: value for key, value in values.items() if not key.endswith("seconds")}


def assert_death_is_confined(made: Making, folder: Path, said: str) -> None:
    """A process that dies costs its stage alone; `said`: of the one that dies each time."""
    assert status(made) == STATUS | MORE_STATUS
    assert (folder / "waiting").exists() and (folder / "once").exists()
    died = made.record(2).error
    assert said in died and "2 times" in died


def assert_failure_is_told(made: Making) -> None:
    """A stage that fails says what it printed."""
    broken = made.record(3).error
    assert broken.startswith("diagnose tiny-ties: ") and "no_records.jsonl" in broken
    assert "Traceback" in Path(broken.rpartition("what it printed: ")[2].rstrip(")")).read_text()


def assert_as_by_engine_local(made: Making, folder: Path) -> None:
    """Rows have the records that engine=local gives them; one of them is calibrated."""
    rows = {0: ROWS[0], 1: ROWS[1], 5: more_rows(folder)[1]}
    alone = make(cells(folder, folder / "local", *rows.values()), folder / "local-work")
    for number, row in enumerate(rows):
        assert made.record(row).status == "ok" and comparable(made.record(row)) == comparable(alone.record(number))
    assert made.record(5).calibration is not None


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
