"""A small stage that leaves a trace of every time it really ran, for tests of the chain."""

import os
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from pipelines.runner.estimate import Estimate
from pipelines.runner.stage import Node, Stage

PATIENCE = 120  # seconds until a test that would hang fails instead


@dataclass
class TraceConfig:
    """trace: file that gets a line a run, named without a folder so that its content is not part of the key."""

    trace: str = "/dev/null"
    text: str = "hello"
    fail: bool = False


def trace(
    config: TraceConfig,
    inputs: dict[str, Path],
    out: Path,
    *,
    die: bool = False,
    started: Event | None = None,
    until: Event | None = None,
) -> dict[str, str]:
    """Appends a line to the trace, writes into `out`, sets `started`, waits for `until`, and dies if asked to."""
    with Path(config.trace).open("a") as file:
        file.write(f"{config.text}\n")
    (out / "text").write_text(config.text + "".join((path / "text").read_text() for path in inputs.values()))
    if started is not None:
        started.set()
    if until is not None and not until.wait(PATIENCE):
        raise TimeoutError(f"{config.text}: nothing happened that this stage waited for")
    if die:
        os.kill(os.getpid(), 9)
    if config.fail:
        raise ValueError("asked to fail")
    return {"text": config.text}


TRACE = Stage("trace", TraceConfig, trace, lambda node, model: Estimate(0.0, 0.0))


def node(config: TraceConfig, label: str = "one", spec: Stage = TRACE, **inputs: Node) -> Node:
    return Node(spec, label, config, inputs)
