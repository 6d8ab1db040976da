"""A task of Ray: makes one stage. Ray keeps its processes: what takes long to import is imported once in each."""

import os
import sys
from pathlib import Path


def make_on_ray(folder: str, config: str, key: str, result: str, log: str, cores: int) -> None:
    """Does a unit of work (pipelines/engines/unit.py) in a process of Ray.

    Args:
        folder: working directory of the run, which paths in the configuration are relative to.
        config: file with the configuration.
        key: the stage's.
        result: file for what came of it.
        log: file that gets what the stage prints.
        cores: threads that it computes with.
    """
    from pipelines.engines.inside import use_threads, with_output_in

    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    with_output_in(Path(log))
    use_threads(cores)

    from pipelines.engines.unit import make_unit
    from pipelines.engines.worker import log_lines

    log_lines()
    make_unit(Path(config), key, Path(result))
