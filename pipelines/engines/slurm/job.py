"""What a job of SLURM runs: one stage, in a process of its own that may die once. Imported in the job, by submitit."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harc.files import replace_file
from pipelines.engines.command import ending, environment


@dataclass
class Job:
    """A command that leaves a result file, called by submitit in the job."""

    command: list[str]
    """Does the work; its exit status is 0 if it was done."""

    folder: str
    """Working directory."""

    cores: int
    """Threads that it computes with."""

    log: str
    """File that gets what it prints."""

    result: str | None = None
    """File that it leaves whether the work was done or not; None: it leaves none."""

    attempts: int = 1
    """At a process that dies without leaving it."""

    def __call__(self) -> None:
        """Runs the command; a job that fails keeps those after it from starting.

        Raises:
            RuntimeError: the work was not done.
        """
        if self.result is not None:
            Path(self.result).unlink(missing_ok=True)
        status = 1
        for attempt in range(1, self.attempts + 1):
            with Path(self.log).open("ab") as log:
                status = subprocess.run(
                    self.command, cwd=self.folder, env=environment(self.cores, os.environ), stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, check=False,
                ).returncode  # fmt: skip
            if self.result is None or Path(self.result).exists():
                break
            print(f"attempt {attempt} of {self.attempts}: {ending(status)}, no result", file=sys.stderr)
        else:
            self._give_up(ending(status))
        if status:
            raise RuntimeError(f"exit status {status} (what it printed: {self.log})")

    def _give_up(self, how: str) -> None:
        """Leaves in the result file what the process could not: how it ended."""
        error = f"its process {how}, {self.attempts} times"
        path = Path(str(self.result))
        replace_file(path, json.dumps({"key": path.stem, "status": "failed", "seconds": 0.0, "error": error}))

    def checkpoint(self) -> Any:
        """Called by submitit when the job's time is over or it is preempted: it is queued again, as it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
