"""What SLURM says of its nodes and jobs: sinfo, squeue, scontrol. No accounting database is needed."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.runner.resources import Resources


@dataclass(frozen=True)
class JobState:
    """How a job stands."""

    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, OUT_OF_MEMORY, CANCELLED, ..."""

    words: str
    """The same with its reason and node, where there are any."""

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.state not in (
            "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT",
            "RESIZING", "SIGNALING", "STOPPED", "SPECIAL_EXIT",
        )  # fmt: skip


def ask(*command: str) -> str:
    """What a command of SLURM prints.

    Raises:
        RuntimeError: it failed; with what it said.
        FileNotFoundError: SLURM is not installed here.
    """
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{command[0]} is not found: engine=slurm is for a machine that submits jobs"
        ) from error
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.stderr.strip() or said.stdout.strip()}")
    return said.stdout


def nodes_of(partition: str | None) -> Resources:
    """The nodes of a partition that are up, as so many alike: of those with most GPUs, what the smallest has.

    Raises:
        RuntimeError: there is no such partition, or none of its nodes is up.
    """
    chosen = ["-p", partition] if partition else []
    # the default partition bears a star
    lines = [line.split("|") for line in ask("sinfo", "-h", "-N", "-o", "%P|%c|%m|%G|%t", *chosen).splitlines()]
    down = ("down", "drain", "fail", "maint", "unk", "boot", "power")
    up = [
        (int(re.match(r"\d+", cores)[0]), int(re.match(r"\d+", memory)[0]), gpus_of(gres))  # type: ignore[index]
        for name, cores, memory, gres, state in lines
        if (partition or name.endswith("*")) and not state.startswith(down) and not state.endswith("*")
    ]
    if not up:
        raise RuntimeError(f"no node of {'partition ' + partition if partition else 'the default partition'} is up")
    most = max(gpus for *_, gpus in up)
    alike = [node for node in up if node[2] == most]
    cores, memory = min(node[0] for node in alike), min(node[1] for node in alike)
    return Resources(cores=cores, gpus=most, memory_gb=memory * 2**20 / 1e9, nodes=len(alike))


def gpus_of(gres: str) -> int:
    """GPUs of a node, by SLURM's list of its devices: `gpu:a100:8(S:0-1),nic:2`."""
    found = re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres)
    return sum(map(int, found))


def states_of(jobs: Sequence[str]) -> dict[str, JobState]:
    """How jobs stand, those that SLURM still knows (it forgets them minutes after their end)."""
    found = {}
    for line in ask("squeue", "-h", "--states=all", "-o", "%i|%T|%r|%N").splitlines():
        job, state, reason, node = line.split("|", 3)
        if job in jobs:
            more = ", ".join(filter(None, [reason if reason != "None" else "", f"on {node}" if node else ""]))
            found[job] = JobState(state, f"{state} ({more})" if more else state)
    return found


def cancel(jobs: Sequence[str]) -> None:
    """Ends jobs, those that run and those that wait."""
    if jobs:
        ask("scancel", *jobs)
