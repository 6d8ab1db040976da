"""A stage's directory: named by a key, made once, complete or absent.

`outputs/<stage>/<label>-<key>/` appears by a rename when the stage has finished, with a manifest of what made it. The
key hashes the stage's own config, the keys of its inputs and the stage's version, so equal work has one directory
whoever asks for it. A lock makes a second process wait and then read.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.manifest import MANIFEST, damage, describe_files, sync, write_synced
from pipelines.memory import PeakMemory
from pipelines.versions import versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageSpec:
    """What the chain knows of a stage.

    function: `module:name` of the plain function (config, inputs, out) -> metrics, imported when it runs.
    version: raised when the function's result changes for the same config.
    resumable: what a killed attempt left in `out` is handed to the next one instead of being cleared.
    """

    function: str
    version: int = 1
    resumable: bool = False

    def load(self) -> Callable[..., dict[str, Any]]:
        module, name = self.function.split(":")
        return getattr(import_module(module), name)


STAGES = {
    "world": StageSpec("pipelines.world:build_world", version=2),
    "pretrain": StageSpec("pipelines.train:pretrain", resumable=True),
    "finetune": StageSpec("pipelines.train:finetune", resumable=True),
    "sample": StageSpec("pipelines.sample:sample"),
    "merge": StageSpec("pipelines.routers:merge"),
    "calibrate": StageSpec("pipelines.routers:calibrate"),  # its finished layers are kept beside `out`
    "swap": StageSpec("pipelines.routers:swap"),
    "sft": StageSpec("pipelines.train:sft", resumable=True),
    "cost": StageSpec("pipelines.cost:measure_cost"),
    "diagnose": StageSpec("pipelines.routers:diagnose"),
    "evaluate": StageSpec("pipelines.evaluate:evaluate"),
}


@dataclass(frozen=True)
class Node:
    """One stage of one chain, before it has run. Two nodes of equal key are the same work.

    options: arguments that don't change the result (number of processes), kept out of the key.
    """

    stage: str
    label: str
    config: Any
    inputs: dict[str, "Node"] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for everything the result depends on."""
        identity = {
            "stage": self.stage,
            "version": STAGES[self.stage].version,
            "config": dataclasses.asdict(self.config),
            "inputs": {name: node.key for name, node in sorted(self.inputs.items())},
            "local": local_fingerprints(dataclasses.asdict(self.config)),
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def path(self, outputs: Path) -> Path:
        """The directory this node has, or will have."""
        return outputs / self.stage / f"{self.label}-{self.key}"

    def chain(self) -> list["Node"]:
        """This node after everything it needs, each once."""
        seen: dict[str, Node] = {}

        def visit(node: Node) -> None:
            for needed in node.inputs.values():
                visit(needed)
            seen.setdefault(_identity(node), node)

        visit(self)
        return list(seen.values())


@dataclass(frozen=True)
class Made:
    """A finished stage: where it is, its manifest, and whether this call made it."""

    node: Node
    path: Path
    manifest: dict[str, Any]
    made: bool

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest["metrics"]


def local_fingerprints(config: Any) -> dict[str, str]:
    """Of every local file or folder that a config names, its sizes and times: an edited one makes a new key."""
    found: dict[str, str] = {}
    for value in _strings(config):
        path = Path(value).expanduser()
        if ("/" in value or "." in value) and "\n" not in value and len(value) < 1000 and path.exists():
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            parts = [f"{p.relative_to(path)}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
            found[value] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return found


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def is_made(node: Node, outputs: Path) -> bool:
    """Whether the node's directory is there and whole."""
    path = node.path(outputs)
    return path.is_dir() and damage(path) is None


class Runner:
    """Makes nodes, and remembers within a process which are known to be whole."""

    def __init__(self, outputs: Path):
        self.outputs = Path(outputs)
        self.known: dict[str, Made] = {}

    def run(self, node: Node) -> Made:
        """Makes the node and all it needs; see `run_all`."""
        return self.run_all(node.chain())[-1]

    def run_all(self, nodes: list[Node]) -> list[Made]:
        """Makes the nodes, each at most once in all processes that share `outputs`, and returns them in their order.

        nodes: every node after its inputs, as `Node.chain` lists them. Where another process is at work on one, the
        next that can be made is taken meanwhile; only when there is none left does this process wait.

        Raises whatever a stage raises; nothing is left under its final name then.
        """
        pending = [node for node in nodes if _identity(node) not in self.known]
        while pending:
            ready = [node for node in pending if all(_identity(up) in self.known for up in node.inputs.values())]
            done = next((node for node in ready if self._attempt(node, wait=False)), None)
            if done is None:
                done = ready[0]
                self._attempt(done, wait=True)
            pending.remove(done)
        return [self.known[_identity(node)] for node in nodes]

    def _attempt(self, node: Node, wait: bool) -> bool:
        """Reads the node, or makes it. False: another process is making it, and `wait` wasn't asked for."""
        final = node.path(self.outputs)
        made = self._read(node)
        if made is None:
            with _lock(self.outputs / node.stage / ".locks" / f"{final.name}.lock", final, wait) as acquired:
                if not acquired:
                    return False
                made = self._read(node) or Made(node, final, self._make(node, final), made=True)
        self.known[_identity(node)] = made
        return True

    def _read(self, node: Node) -> Made | None:
        final = node.path(self.outputs)
        if not final.is_dir():
            return None
        trouble = damage(final)
        if trouble is not None:
            log.warning("damaged: %s; making %s again", trouble, final)
            return None
        return Made(node, final, json.loads((final / MANIFEST).read_text()), made=False)

    def _make(self, node: Node, final: Path) -> dict[str, Any]:
        inputs = {name: self.known[_identity(up)].path for name, up in node.inputs.items()}
        spec = STAGES[node.stage]
        partial = self.outputs / node.stage / ".partial" / final.name
        if partial.exists() and not spec.resumable:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        log.info("%s %s", node.stage, final)
        started = time.time()
        try:
            with PeakMemory() as memory:
                metrics = spec.load()(node.config, inputs, partial, **node.options)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(errno.ENOSPC, f"the disk is full; {node.stage} was writing {partial}") from error
            raise
        manifest = {
            "stage": node.stage,
            "label": node.label,
            "key": node.key,
            "version": spec.version,
            "config": dataclasses.asdict(node.config),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "metrics": metrics,
            "seconds": time.time() - started,
            "peak_memory_gb": memory.peak_gb,
            "versions": versions(),
            "files": describe_files(partial),
        }
        write_synced(partial / MANIFEST, json.dumps(manifest, indent=1, default=str))
        _publish(partial, final)
        log.info("%s %s done in %.1f s", node.stage, final.name, manifest["seconds"])
        return manifest


def _identity(node: Node) -> str:
    return f"{node.stage}/{node.key}"


@contextmanager
def _lock(path: Path, final: Path, wait: bool) -> Iterator[bool]:
    """The lock of one directory, and whether it was acquired: always if `wait`, else only if nobody holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        log.info("waiting: another process is making %s", final)
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


def _publish(partial: Path, final: Path) -> None:
    """Renames the finished directory into place; a damaged one there is removed only once the new one stands."""
    old = partial.with_name(partial.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    if old.exists():
        shutil.rmtree(old)
