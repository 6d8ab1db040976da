"""Merging of Hugging Face checkpoints, streamed tensor by tensor or layer by layer; one short file a method.

Settings are imported with the package, which is light; `merge`, `MergeReport` and `METHODS` when first used.
"""

from typing import Any

from harc.merge.settings import (
    AverageSettings,
    DareSettings,
    DellaSettings,
    FisherSettings,
    MergeSettings,
    RegmeanSettings,
    SceSettings,
    TaskArithmeticSettings,
    TiesSettings,
    WudiSettings,
)

__all__ = [
    "METHODS",
    "AverageSettings",
    "DareSettings",
    "DellaSettings",
    "FisherSettings",
    "MergeReport",
    "MergeSettings",
    "RegmeanSettings",
    "SceSettings",
    "TaskArithmeticSettings",
    "TiesSettings",
    "WudiSettings",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name in ("METHODS", "MergeReport", "merge"):
        from harc.merge import driver

        return getattr(driver, name)
    raise AttributeError(f"module 'harc.merge' has no attribute {name!r}")
