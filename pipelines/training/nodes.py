"""One training on several machines: the first, where its stage is made, has the others start their processes.

Under SLURM they are steps of the stage's own job, under Ray tasks in the stage's own placement group: what starts them
is what gave the stage its machines. They see the same files under the same paths, and meet at an address of the first.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol


class Part(Protocol):
    """The processes of another machine."""

    def poll(self) -> int | None:
        """Their exit status; None while they run."""

    def stop(self) -> None:
        """Ends them."""


def start_part(rank: int, command: Sequence[str]) -> Part:
    """Starts a command on another of the machines that this stage was given.

    Args:
        rank: of the machine, 1 or more.
        command: what it runs.

    Raises:
        RuntimeError: the stage was given one machine.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return RayPart(rank, command)
    if "SLURM_JOB_ID" in os.environ:
        return SlurmPart(rank, command)
    raise RuntimeError("launch.nodes: this stage has one machine; engine=slurm and engine=ray give it several")


def address() -> tuple[str, int]:
    """Where the processes meet: this machine, as the others know it, and a port that is free."""
    host = socket.gethostname()
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        host = sys.modules["ray"].util.get_node_ip_address()
    with socket.socket() as free:
        free.bind(("", 0))
        return host, free.getsockname()[1]


class SlurmPart:
    """A step of the job on the rank-th of its nodes."""

    def __init__(self, rank: int, command: Sequence[str]):
        cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        step = ["srun", "--overlap", f"--relative={rank}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={cores}"]
        self._process = subprocess.Popen([*step, *command], stdin=subprocess.DEVNULL)

    def poll(self) -> int | None:
        """See `Part`."""
        return self._process.poll()

    def stop(self) -> None:
        """See `Part`."""
        self._process.terminate()
        self._process.wait()


class RayPart:
    """A task in the rank-th bundle of the placement group."""

    def __init__(self, rank: int, command: Sequence[str]):
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.get_current_placement_group()
        if group is None:
            raise RuntimeError("launch.nodes: Ray gave this stage one machine")
        bundle = group.bundle_specs[rank]
        self._task = (
            ray.remote(run_command)
            .options(
                num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
            )
            .remote(list(command), os.getcwd(), os.environ["OMP_NUM_THREADS"])  # noqa: PTH109
        )  # fmt: skip

    def poll(self) -> int | None:
        """See `Part`."""
        import ray

        if not ray.wait([self._task], timeout=0)[0]:
            return None
        with suppress(ray.exceptions.RayError):
            return ray.get(self._task)
        return 1

    def stop(self) -> None:
        """See `Part`."""
        import ray

        ray.cancel(self._task, force=True)


def run_command(command: list[str], folder: str, threads: str) -> Any:
    """Runs a command in a folder, where Ray runs this; returns its exit status."""
    return subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False).returncode
