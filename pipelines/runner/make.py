"""Makes the nodes of a chain: each once in all processes that share `outputs`, complete or absent.

A directory appears under its final name by a rename when its stage has finished, with a manifest of what made it. Who
makes it holds a claim (pipelines/runner/claims.py), so that a second process waits and then reads.
"""

import dataclasses
import errno
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harc.files import publish, write_synced
from pipelines.runner.claims import PACE, Claim, Claims, Pace
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
    """Whether the node's directory is there and whole; a damaged one is named in the log."""
    path = node.path(outputs)
    if not path.is_dir():
        return False
    trouble = damage(path)
    if trouble is not None:
        log.warning("damaged: %s; %s has to be made again", trouble, path)
    return trouble is None


class Runner:
    """Makes nodes, and remembers within a process which are known to be whole."""

    def __init__(self, outputs: Path, pace: Pace = PACE):
        self.outputs, self.pace = Path(outputs), pace
        self.known: dict[str, Made] = {}
        self._claims: dict[str, Claims] = {}

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
        while made is None:
            with self._claims_of(node).claimed(final.name, wait) as claim:
                if claim is None:
                    return False
                partial = self._take_partial(node, final, claim)
                made = self._read(node)
                if made is not None:
                    shutil.rmtree(partial)
                    break
                try:
                    made = Made(node, final, self._make(node, final, partial, claim), made=True)
                except Exception as error:
                    if claim.held:
                        raise
                    log.warning("%s: another process took over, this one had not been heard of (%s)", final, error)
        self.known[node.identity] = made
        return True

    def _claims_of(self, node: Node) -> Claims:
        folder = self.outputs / node.stage / ".claims"
        return self._claims.setdefault(node.stage, Claims(folder, self.pace))

    def _take_partial(self, node: Node, final: Path, claim: Claim) -> Path:
        """The folder to write into. What earlier owners wrote is moved there for a stage that resumes, else removed.

        It is the claim's own: an owner who was taken for dead and is not finds its folder gone.
        """
        room = self.outputs / node.stage / ".partial"
        room.mkdir(parents=True, exist_ok=True)
        partial = room / f"{final.name}.{claim.token[:8]}"
        left = [path for path in room.iterdir() if path.name.rpartition(".")[0] == final.name]
        if left and node.spec.resumable:
            left.sort(key=lambda path: path.stat().st_mtime)
            left.pop().rename(partial)
        for path in left:
            shutil.rmtree(path, ignore_errors=True)  # what a dead owner started may still write there
        partial.mkdir(exist_ok=True)
        return partial

    def _read(self, node: Node) -> Made | None:
        final = node.path(self.outputs)
        if not final.is_dir():
            return None
        trouble = damage(final)
        if trouble is not None:
            log.warning("damaged: %s; making %s again", trouble, final)
            return None
        return Made(node, final, json.loads((final / MANIFEST).read_text()), made=False)

    def _make(self, node: Node, final: Path, partial: Path, claim: Claim) -> dict[str, Any]:
        inputs = {name: self.known[up.identity].path for name, up in node.inputs.items()}
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
        if not claim.held:
            raise InterruptedError(f"the claim on {final} is another process's by now")
        publish(partial, final)
        log.info("%s %s done in %.1f s", node.stage, final.name, manifest["seconds"])
        return manifest
