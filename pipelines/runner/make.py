"""Makes the nodes of a chain: each once in all processes that share `outputs`, complete or absent.

A directory appears under its final name by a rename when its stage has finished, with a manifest of what made it. A
lock makes a second process wait and then read.
"""

import dataclasses
import errno
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harc.files import publish, write_synced
from pipelines.runner.manifest import MANIFEST, damage, describe_files
from pipelines.runner.memory import PeakMemory
from pipelines.runner.stage import Node
from pipelines.runner.versions import versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """A finished stage: where it is, its manifest, and whether this call made it."""

    node: Node
    path: Path
    manifest: dict[str, Any]
    made: bool

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage's function returned."""
        return self.manifest["metrics"]


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

    def run_one(self, node: Node) -> Made:
        """Makes the node alone, of inputs that are there.

        Raises:
            FileNotFoundError: an input is missing or damaged; names it.
        """
        for up in node.inputs.values():
            self.read(up)
        self._attempt(node, wait=True)
        return self.known[node.identity]

    def read(self, node: Node) -> Made:
        """The finished node.

        Raises:
            FileNotFoundError: it is missing or damaged.
        """
        made = self.known.get(node.identity) or self._read(node)
        if made is None:
            raise FileNotFoundError(f"{node.path(self.outputs)}: {node.stage} {node.label} is missing or damaged")
        self.known[node.identity] = made
        return made

    def run_all(self, nodes: list[Node]) -> list[Made]:
        """Makes the nodes, each at most once in all processes that share `outputs`, and returns them in their order.

        nodes: every node after its inputs, as `Node.chain` lists them. Where another process is at work on one, the
        next that can be made is taken meanwhile; only when there is none left does this process wait.

        Raises whatever a stage raises; nothing is left under its final name then.
        """
        pending = [node for node in nodes if node.identity not in self.known]
        while pending:
            ready = [node for node in pending if all(up.identity in self.known for up in node.inputs.values())]
            done = next((node for node in ready if self._attempt(node, wait=False)), None)
            if done is None:
                done = ready[0]
                self._attempt(done, wait=True)
            pending.remove(done)
        return [self.known[node.identity] for node in nodes]

    def _attempt(self, node: Node, wait: bool) -> bool:
        """Reads the node, or makes it. False: another process is making it, and `wait` wasn't asked for."""
        final = node.path(self.outputs)
        made = self._read(node)
        if made is None:
            with _lock(self.outputs / node.stage / ".locks" / f"{final.name}.lock", final, wait) as acquired:
                if not acquired:
                    return False
                made = self._read(node) or Made(node, final, self._make(node, final), made=True)
        self.known[node.identity] = made
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
        inputs = {name: self.known[up.identity].path for name, up in node.inputs.items()}
        partial = self.outputs / node.stage / ".partial" / final.name
        if partial.exists() and not node.spec.resumable:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        log.info("%s %s", node.stage, final)
        started = time.time()
        try:
            with PeakMemory() as memory:
                metrics = node.spec.function(node.config, inputs, partial, **node.options)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(errno.ENOSPC, f"the disk is full; {node.stage} was writing {partial}") from error
            raise
        manifest = {
            "stage": node.stage,
            "label": node.label,
            "key": node.key,
            "version": node.spec.version,
            "config": dataclasses.asdict(node.config),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "metrics": metrics,
            "seconds": time.time() - started,
            "peak_memory_gb": memory.peak_gb,
            "versions": versions(),
            "files": describe_files(partial),
        }
        write_synced(partial / MANIFEST, json.dumps(manifest, indent=1, default=str))
        publish(partial, final)
        log.info("%s %s done in %.1f s", node.stage, final.name, manifest["seconds"])
        return manifest


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
