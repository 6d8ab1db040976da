"""The sandbox's modes as test parameters; those that this machine lacks are skipped."""

import pytest

from eval.sandbox import isolation


def _works(mode: str) -> bool:
    return any(found.mode == mode and isolation._works(found) for found in isolation._candidates())


MODES = [
    pytest.param(mode, marks=() if _works(mode) else pytest.mark.skip(reason=f"{mode} does not work on this machine"))
    for mode in isolation.MODES
]
