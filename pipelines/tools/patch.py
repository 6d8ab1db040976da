"""`+experiment=patch`: a calibrated model as a file of what changed, and back (harc.patching)."""

import logging
from pathlib import Path

import harc
from pipelines.chain.nodes import located
from pipelines.config import Config
from pipelines.tools.own_models import given

log = logging.getLogger(__name__)

USAGE = (
    "python run.py +experiment=patch calibrated=PATH merged=PATH out=FILE writes a patch, "
    "python run.py +experiment=patch patch=FILE model=PATH [out=PATH] applies one"
)


def patch_own(config: Config) -> Path:
    """Writes a patch, or applies one; the patch or the patched checkpoint.

    Raises:
        ValueError: settings of both, or too few of one; models or a patch that don't fit.
    """
    out = Path(config.out).expanduser() if config.out else None
    if config.patch or config.model:
        given(config, USAGE, "patch", "model")
        if config.calibrated or config.merged:
            raise ValueError(f"calibrated and merged make a patch, patch and model apply one; {USAGE}")
        done = harc.apply_patch(str(config.patch), str(located(config.model)), out)
        log.info("%s is the calibrated model now, to the bit", done)
        return done
    given(config, USAGE, "calibrated", "merged", "out")
    return harc.save_patch(str(located(config.calibrated)), str(located(config.merged)), str(out)).path
