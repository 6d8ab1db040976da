"""Training in more than one process: `accelerate launch` of pipelines.training.run with a config of conf/accelerate.

The job, a JSON file in the stage's work directory, carries the stage's config and inputs to the processes.
"""

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from pipelines.places import CONF, ROOT
from pipelines.stages import find_stage
from pipelines.training.nodes import Part, address, start_part
from pipelines.training.settings import LaunchConfig

log = logging.getLogger(__name__)

JOB = "job.json"
_ACCELERATE = CONF / "accelerate"


def split_batch(batch_size: int, micro_batch_size: int | None, processes: int) -> tuple[int, int]:
    """Sequences a process takes at once, and how often it does so a step; their product over all is `batch_size`.

    Raises:
        ValueError: the batch cannot be divided evenly.
    """
    micro = micro_batch_size or max(1, batch_size // processes)
    if batch_size % (micro * processes):
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of {processes} processes x micro_batch_size {micro}; "
            "set micro_batch_size or the number of processes so that it is"
        )
    return micro, batch_size // (micro * processes)


def write_job(work: Path, stage: str, config: Any, inputs: dict[str, Path]) -> None:
    """Writes the job; what an attempt at another job left in `work` is removed."""
    job = {
        "stage": stage,
        "config": dataclasses.asdict(config),
        "inputs": {name: str(Path(path).resolve()) for name, path in inputs.items()},
    }
    text = json.dumps(job, indent=1, sort_keys=True)
    path = work / JOB
    if work.exists() and not (path.exists() and path.read_text() == text):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_job(work: Path) -> tuple[str, Any, dict[str, Path]]:
    """Stage name, typed config and inputs of the job in a work directory."""
    job = json.loads((work / JOB).read_text())
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(find_stage(job["stage"]).config), job["config"]))
    return job["stage"], config, {name: Path(path) for name, path in job["inputs"].items()}


def launch_training(work: Path, launch: LaunchConfig) -> dict[str, Any]:
    """Runs the job in `launch.processes` processes and returns its metrics.

    Without a GPU the processes share the CPU through gloo, whatever config was named.

    Raises:
        FileNotFoundError: no such accelerate config.
        RuntimeError: the training failed; its last lines are in the message.
    """
    name = launch.accelerate if torch.cuda.is_available() else "cpu"
    settings = _ACCELERATE / f"{name}.yaml"
    if not settings.is_file():
        valid = ", ".join(sorted(path.stem for path in _ACCELERATE.glob("*.yaml")))
        raise FileNotFoundError(f"no accelerate config '{name}' in {_ACCELERATE}; valid: {valid}")
    if name != launch.accelerate:
        log.info("no GPU here: %d processes on the CPU (conf/accelerate/cpu.yaml)", launch.processes)
    host, port = address() if launch.nodes > 1 else ("127.0.0.1", 0)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
    command += ["--num_processes", str(launch.processes), "--num_machines", str(launch.nodes)]
    command += ["--main_process_port", str(port)] + ["--main_process_ip", host] * (launch.nodes > 1)
    job = ["-m", "pipelines.training.run", str((work / JOB).resolve())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    parts = [start_part(rank, [*command, "--machine_rank", str(rank), *job]) for rank in range(1, launch.nodes)]
    first = [*command, "--machine_rank", "0", *job]
    child = subprocess.Popen(first, env=environment, stderr=subprocess.PIPE, preexec_fn=_die_with_parent)
    kept: deque[bytes] = deque(maxlen=400)
    reader = threading.Thread(target=_pass_on, args=(child.stderr, kept))
    reader.start()
    try:
        status = _wait(child, parts)
    except BaseException:
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=60)
        raise
    finally:
        reader.join()
        for part in parts:
            if part.poll() is None:
                part.stop()
    if status:
        lines = [line for line in b"".join(kept).decode(errors="replace").splitlines() if line.strip()]
        raised = [line for line in lines if re.search(r"^(\[rank\d+\]: ?)?\w*(Error|Exception): ", line)]
        reason = raised[0] if raised else (lines[-1] if lines else "no output")
        raise RuntimeError(f"training in {launch.processes} processes failed (exit status {status}): {reason}")
    return json.loads((work / "metrics.json").read_text())


def _wait(child: subprocess.Popen, parts: list[Part]) -> int:
    """The exit status of the processes of this machine; they are ended when those of another have failed."""
    while (status := child.poll()) is None:
        if any(part.poll() for part in parts):
            child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)
    return status


def _pass_on(stream: Any, kept: "deque[bytes]") -> None:
    """Shows what the processes write, the progress bar among it, and keeps the end of it."""
    while chunk := stream.read1(65536):
        kept.append(chunk)
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()


def _die_with_parent() -> None:
    """Linux: the launcher gets SIGTERM when this process is killed, so that no training is left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
