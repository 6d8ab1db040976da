"""What a stage is, and one stage of one chain before it has run.

A stage is declared once, at the end of its file in pipelines/stages/: its configuration, function and version, what it
needs, and what is checked before anything runs. A node is a stage with a configuration and inputs. Its key hashes these
and the stage's version, so that equal work has one directory, `outputs/<stage>/<label>-<key>/`, whoever asks.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.places import plain_name
from pipelines.runner.estimate import Estimate, ModelSize, Work
from pipelines.runner.resources import Resources


@dataclass(frozen=True)
class Stage:
    """A kind of work: `function(config, inputs, out) -> metrics`, and what the chain must know of it beforehand."""

    name: str
    """The stage's folder in outputs/, and its file in pipelines/stages/."""

    config: type
    """Dataclass of its settings. Every field is part of the key."""

    function: Callable[..., dict[str, Any]]
    """Plain function of the config, the inputs (name -> directory) and the directory to write; it returns metrics. What
    takes long to import is imported when it is called."""

    estimate: Callable[["Node", ModelSize], Estimate]
    """Memory and disk that a node needs at a model size."""

    resources: Callable[["Node", ModelSize], Resources] | None = None
    """Cores, GPUs and memory while it is made (None: one core, and the estimate's memory on the host)."""

    work: Callable[["Node", ModelSize], Work] | None = None
    """How much there is to compute, for an estimate of its time (None: next to nothing)."""

    remedy: str = ""
    """What makes it fit a machine that has too little memory for it, in words."""

    version: int = 1
    """Raised when the function's result changes for the same config."""

    resumable: bool = False
    """Whether what a killed attempt left is handed to the next one instead of being cleared."""

    preflight: Callable[["Node"], None] | None = None
    """Raises, before any stage of a chain runs, what would make this one fail: a missing package or file."""


@dataclass(frozen=True)
class Node:
    """One stage of one chain, before it has run. Two nodes of equal key are the same work."""

    spec: Stage
    """What is done."""

    label: str
    """What its directory is called, before the key."""

    config: Any
    """An instance of `spec.config`."""

    inputs: dict[str, "Node"] = field(default_factory=dict)
    """The stages that it reads."""

    options: dict[str, Any] = field(default_factory=dict)
    """Arguments that do not change the result (number of processes), kept out of the key."""

    def __post_init__(self) -> None:
        """Refuses a label that would lead out of the stage's folder."""
        plain_name(self.label, f"label of stage {self.spec.name}")

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.spec.name

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for everything the result depends on."""
        config = dataclasses.asdict(self.config)
        identity = {
            "stage": self.stage,
            "version": self.spec.version,
            "config": config,
            "inputs": {name: node.key for name, node in sorted(self.inputs.items())},
            "local": local_fingerprints(config),
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def identity(self) -> str:
        """Stage and key: equal for equal work."""
        return f"{self.stage}/{self.key}"

    def path(self, outputs: Path) -> Path:
        """The directory this node has, or will have."""
        return outputs / self.stage / f"{self.label}-{self.key}"

    def chain(self) -> list["Node"]:
        """This node after everything it needs, each once."""
        seen: dict[str, Node] = {}

        def visit(node: Node) -> None:
            for needed in node.inputs.values():
                visit(needed)
            seen.setdefault(node.identity, node)

        visit(self)
        return list(seen.values())


def local_fingerprints(config: Any) -> dict[str, str]:
    """Of every local file or folder that a config names, its sizes and times: an edited one makes a new key."""
    found: dict[str, str] = {}
    for value in _strings(config):
        path = Path(value).expanduser()
        if ("/" in value or "." in value) and "\n" not in value and len(value) < 1000 and path.exists():
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_content(p))
            parts = [f"{p.relative_to(path)}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
            found[value] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return found


def _is_content(path: Path) -> bool:
    """A file that someone wrote: what importing a folder's Python leaves there is not."""
    return path.is_file() and path.parent.name != "__pycache__"


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []
