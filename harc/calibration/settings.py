"""The settings of a calibration: those of each router's fit, the target, and the layers."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from harc.calibration.control import Control
from harc.solver.settings import SolveSettings, check_word

Target = Literal["merged_inputs", "source_inputs"]
Bias = Literal["solve", "keep"]


@dataclass(frozen=True)
class CalibrationSettings(SolveSettings):
    """How a merged model's routers are calibrated.

    Raises:
        ValueError: as SolveSettings; a target or layers that there cannot be.
    """

    target: Target = "merged_inputs"
    """What routing is fitted to: each source router's on the merged model's hidden states (the paper's), or on its own
    model's (source_inputs), which runs beside the merged model."""

    bias: Bias = "solve"
    """Of routers with a bias (gpt-oss): solved with the weight, as that of a feature that is always 1, or kept as
    merged (keep) while the weight is fitted beside it. Routers without one are the same either way."""

    layers: int | str = "all"
    """"all", how many of the last MoE layers, or a share of them such as "25%", rounded up; others stay as merged."""

    control: Control = "none"
    """A negative control in place of a calibration (harc.calibration.control): random writes routers changed in random
    directions by the norm of each layer's calibration; swapped fits each domain's text to another domain's source."""

    def __post_init__(self) -> None:
        """Checks every setting."""
        super().__post_init__()
        check_word("target", self.target, get_args(Target))
        check_word("bias", self.bias, get_args(Bias))
        check_word("control", self.control, get_args(Control))
        parse_layers(self.layers)
        if self.solver == "published" and self.target != "merged_inputs":
            raise ValueError(f"solver=published has no target={self.target}: take solver=refined")
        if self.solver == "published" and self.bias == "keep":
            raise ValueError("solver=published has no bias=keep: leave it out, or take solver=refined")

    @property
    def holds_out(self) -> bool:
        """Whether one in five sequences is held out, to choose α by or to judge a noisy fit."""
        return self.alpha == "auto" or self.target == "source_inputs"


def parse_layers(layers: int | str) -> int | Fraction:
    """A number of layers, or their share ("all" is 1).

    Raises:
        ValueError: something else.
    """
    if layers == "all":
        return Fraction(1)
    if isinstance(layers, int) and not isinstance(layers, bool) and layers >= 0:
        return layers
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", layers) if isinstance(layers, str) else None
    if share and 0 < Fraction(share[1]) <= 100:
        return Fraction(share[1]) / 100
    raise ValueError(
        f"layers={layers}: expected all, a number of the last MoE layers, or a share such as 25%, up to 100%"
    )


def choose_layers(available: Sequence[int], layers: int | str) -> list[int]:
    """The last of the available layers, as many as `layers` says.

    Raises:
        ValueError: more layers than there are; as `parse_layers`.
    """
    asked = parse_layers(layers)
    count = math.ceil(asked * len(available)) if isinstance(asked, Fraction) else asked
    if count > len(available):
        raise ValueError(f"layers={layers}: the model has {len(available)} MoE layers")
    return list(available[len(available) - count :])
