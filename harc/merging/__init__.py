"""Merging of Hugging Face checkpoints, streamed tensor by tensor or layer by layer; one short file per method.

    from harc.merging import MergeSettings, method, setting     what a method of your own is made from
    harc.merge("ties", ...), harc.merging.METHODS               the merge, and all methods by name

Imported with the package is only what needs no torch; the rest when it is first used.
"""

from typing import Any

from harc.merging.registry import method
from harc.merging.settings import MergeSettings, WeightedSettings, setting

__all__ = ["METHODS", "MergeReport", "MergeSettings", "WeightedSettings", "merge", "method", "setting"]


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        from harc.merging.registry import methods

        return methods()
    if name in ("MergeReport", "merge"):
        from harc.merging import driver

        return getattr(driver, name)
    raise AttributeError(f"module 'harc.merging' has no attribute {name!r}")
