"""Small stages that leave a trace of every time they really ran, for tests of the chain."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class TraceConfig:
    """trace: file that gets a line a run; text: what the stage writes."""

    trace: str = "/dev/null"
    text: str = "hello"
    seconds: float = 0.0
    fail: bool = False
    die: bool = False


def trace(config: TraceConfig, inputs: dict[str, Path], out: Path) -> dict[str, str]:
    """Appends a line to the trace, writes a file into `out`, and then does as the config says."""
    with Path(config.trace).open("a") as file:
        file.write(f"{config.text}\n")
    (out / "text").write_text(config.text + "".join((path / "text").read_text() for path in inputs.values()))
    time.sleep(config.seconds)
    if config.die:
        os.kill(os.getpid(), 9)
    if config.fail:
        raise ValueError("asked to fail")
    return {"text": config.text}
