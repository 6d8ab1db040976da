"""`+experiment=paper`: runs experiments one after the other, each in its own process, and links their reports.

Stages are shared through the outputs folder, so what one experiment made the next one finds. A failed experiment does
not stop the others; the index page says so and the exit status is 1.
"""

import logging
import subprocess
import sys
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from pipelines.config import Config

log = logging.getLogger(__name__)
_RUN = Path(__file__).resolve().parent.parent / "run.py"


def run_suite(config: Config) -> None:
    """Runs `config.experiment.runs` with the user's own overrides, then makes the index page.

    Raises:
        RuntimeError: some of them failed; names them.
    """
    from pipelines.report import build_index

    hydra_config = HydraConfig.get()
    own = [word for word in hydra_config.overrides.task if not word.lstrip("+").startswith("experiment")]
    failed = []
    for number, name in enumerate(config.experiment.runs, 1):
        log.info("%d of %d: +experiment=%s", number, len(config.experiment.runs), name)
        began = time.time()
        status = subprocess.run([sys.executable, str(_RUN), f"+experiment={name}", *own], check=False).returncode
        if status == 130:
            raise KeyboardInterrupt
        log.info("+experiment=%s: exit status %d after %.0f s", name, status, time.time() - began)
        failed += [name] if status else []
    if not config.plan:
        page = build_index(Path(config.outputs), config.scale.name, config.experiment.runs)
        log.info("all reports: %s", page)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(config.experiment.runs)} experiments failed: {', '.join(failed)}")
