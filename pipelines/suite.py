"""`+experiment=paper`: runs experiments, each in its own process, and links their reports.

Stages are shared through the outputs folder: what one experiment makes, or is making, another one finds or waits for.
Where the scale says so, some run side by side, each on its own share of the cores. A failed experiment does not stop
the others; the index page says so and the exit status is 1.
"""

import logging
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from pipelines.config import Config

log = logging.getLogger(__name__)
_RUN = Path(__file__).resolve().parent.parent / "run.py"
_SHOWN = re.compile(r"\d\d:\d\d:\d\d [A-Z] |error: |Report: ")  # how a line begins that is shown here as well

Cores = list[int] | None


def run_suite(config: Config) -> None:
    """Runs `config.experiment.runs` with the user's own overrides, then makes the index page.

    Up to `scale.side_by_side` of them run at once; what they print goes to a file each, whose log lines are shown with
    the name before them. Those of `experiment.alone` follow one by one, with all cores.

    Raises:
        RuntimeError: some of them failed; names them.
    """
    from pipelines.report import build_index

    hydra_config = HydraConfig.get()
    own = [word for word in hydra_config.overrides.task if not word.lstrip("+").startswith("experiment")]
    alone = [name for name in config.experiment.runs if name in config.experiment.alone]
    shared = [name for name in config.experiment.runs if name not in alone]
    logs = Path(hydra_config.runtime.output_dir)
    places = 1 if config.plan else config.scale.side_by_side
    statuses = _run_all(shared, own, shares(places, own_cores()), logs) | _run_all(alone, own, [None], logs)
    failed = [name for name in config.experiment.runs if statuses[name]]
    if not config.plan:
        page = build_index(Path(config.outputs), config.scale.name, in_the_papers_order(config.experiment.runs))
        log.info("all reports: %s", page)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(config.experiment.runs)} experiments failed: {', '.join(failed)}")


def own_cores() -> list[int]:
    """The cores that this process may use; none where the system pins no process to cores."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def shares(places: int, cores: list[int]) -> list[Cores]:
    """Deals cores to `places` processes, fewer where there are fewer cores. None: all, unrestricted."""
    places = max(1, min(places, len(cores)))
    each = len(cores) // places
    return [None] if places == 1 else [cores[place * each : (place + 1) * each] for place in range(places)]


def in_the_papers_order(experiments: Sequence[str]) -> list[str]:
    """Tables, then figures, then the rest."""
    return sorted(experiments, key=lambda name: (not name.startswith("table"), not name.startswith("fig"), name))


def _run_all(names: Sequence[str], own: Sequence[str], cores: Sequence[Cores], logs: Path) -> dict[str, int]:
    """Runs experiments in their order, one on each share of the cores; returns the exit status of each."""
    free: queue.SimpleQueue[Cores] = queue.SimpleQueue()
    for share in cores:
        free.put(share)

    def run(name: str) -> int:
        share = free.get()
        try:
            return _run(name, own, share, logs)
        finally:
            free.put(share)

    with ThreadPoolExecutor(len(cores)) as pool:
        running = {name: pool.submit(run, name) for name in names}
        try:
            statuses = {name: future.result() for name, future in running.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if 130 in statuses.values():
        raise KeyboardInterrupt
    return statuses


def _run(name: str, own: Sequence[str], cores: Cores, logs: Path) -> int:
    command = [sys.executable, str(_RUN), f"+experiment={name}", *own]
    began = time.time()
    if cores is None:
        log.info("+experiment=%s", name)
        status = subprocess.run(command, check=False).returncode
    else:
        printed = logs / f"{name}.log"
        log.info("+experiment=%s on %s: what it prints goes to %s", name, _named(cores), printed)
        os.sched_setaffinity(0, cores)  # of this thread, and so of the process that it starts
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
        with (
            printed.open("w", encoding="utf-8") as file,
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                text = line.decode(errors="replace").rstrip()
                said = text.rpartition("\r")[2]  # what a progress bar drew over itself is left out
                print(said, file=file, flush=True)
                if _SHOWN.match(said):
                    print(f"[{name}] {said}", file=sys.stderr, flush=True)
        status = process.returncode
    log.info("+experiment=%s: exit status %d after %.0f s", name, status, time.time() - began)
    return status


def _named(cores: list[int]) -> str:
    return f"core{'s' if len(cores) > 1 else ''} {', '.join(map(str, cores))}"
