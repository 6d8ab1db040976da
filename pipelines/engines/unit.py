"""The unit of work that every engine hands out: one stage, told by a cell's configuration and the stage's key.

Both are plain text, so that it can be done in any process, on any machine that sees the same files. What came of it is
a small JSON file.
"""

import json
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from harc.files import write_synced
from pipelines.chain.cell import cell_of
from pipelines.config import Config
from pipelines.config.merging import merge_options
from pipelines.config.plugins import load_modules
from pipelines.config.schema import CALIBRATE, ENGINES, register
from pipelines.explain import explain
from pipelines.graph.graph import Graph, Task
from pipelines.runner.make import Runner
from pipelines.typed import from_json, to_json

MADE, FAILED, SKIPPED, QUEUED = "made", "failed", "skipped", "queued"


@dataclass(frozen=True)
class Result:
    """What came of one task."""

    key: str
    """The task's."""

    status: str
    """made, failed, skipped (a task that it needs failed), or queued: it is made after this process has ended."""

    seconds: float = 0.0
    """Wall time."""

    error: str | None = None
    """One line: why it was not made."""

    trace: str | None = None
    """Where that was raised."""

    log: str | None = None
    """The file with what the stage printed."""


class Progress(Protocol):
    """Who is told what an engine does, as it happens."""

    def started(self, task: Task) -> None:
        """A task is being made from now on."""

    def ended(self, task: Task, result: Result) -> None:
        """A task was made, failed, or cannot be made because one that it needs failed."""


def write_units(graph: Graph, folder: Path) -> dict[str, Path]:
    """Writes the configurations that the missing tasks are made from; returns task key -> file.

    folder: gets `<number of the row>.json` for every row whose configuration is needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[int, Path] = {}
    units = {}
    for task in graph.missing:
        row = task.rows[0]
        if row not in files:
            files[row] = folder / f"{row}.json"
            files[row].write_text(json.dumps(plain(graph.rows[row].config)), encoding="utf-8")
        units[task.key] = files[row]
    return units


def plain(config: Config) -> dict[str, Any]:
    """A composed configuration as JSON values, from which `read_config` makes it again."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def read_config(path: Path) -> Config:
    """The configuration that `plain` gave, typed; its plugins are imported first.

    Raises:
        ValueError: the file holds no configuration of this version of the code.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    load_modules(values["plugins"])
    register()
    typed: Any = OmegaConf.structured(Config)
    options: dict[str, Mapping[str, type]] = {"merge": merge_options(), "calibrate": CALIBRATE, "engine": ENGINES}
    for group, kinds in options.items():
        name = values[group]["kind" if group == "engine" else "method"]
        if name not in kinds:
            raise ValueError(f"{path}: {group}={name} is no option here; expected one of {', '.join(kinds)}")
        typed[group] = OmegaConf.structured(kinds[name])
    config = OmegaConf.to_object(OmegaConf.merge(typed, values))
    assert isinstance(config, Config)
    return config


def make_unit(config: Path, key: str, result: Path) -> Result:
    """Makes the stage of that key, whose inputs are there, and writes what came of it to `result`.

    A failure is written, not raised; what the stage printed goes where this process's output goes.
    """
    began = time.time()
    try:
        composed = read_config(config)
        nodes = {node.key: node for node in cell_of(composed).nodes()}
        if key not in nodes:
            raise ValueError(f"{config}: its cell has no stage of key {key}; code or data changed since it was written")
        Runner(Path(composed.outputs)).run_one(nodes[key])
        found = Result(key, MADE, time.time() - began)
    except Exception as error:
        traceback.print_exc()
        found = Result(key, FAILED, time.time() - began, explain(error), traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    write_result(found, result)
    return found


def write_result(found: Result, path: Path) -> None:
    """Writes a result under its final name in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    write_synced(beside, json.dumps(to_json(found), indent=1))
    beside.rename(path)


def read_result(path: Path) -> Result:
    """The result that a unit of work left.

    Raises:
        FileNotFoundError: it left none: its process died.
    """
    return from_json(Result, json.loads(path.read_text(encoding="utf-8")), str(path))
