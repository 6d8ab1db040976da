"""The settings of a repair: those of each router's fit, the parts, and the ridge of each map's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from harc.solver.settings import Objective, SolveSettings, check_word

Part = Literal["router", "experts", "attention"]
Ridge = float | Literal["auto"]
PARTS: tuple[Part, ...] = get_args(Part)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # what ridge="auto" tries


@dataclass(frozen=True)
class RepairSettings(SolveSettings):
    """How a merged model is repaired. Routers are fitted to the exact routing KL, by default.

    Raises:
        ValueError: as SolveSettings; parts, a ridge or a drift that there cannot be.
    """

    objective: Objective = "kl"
    """See SolveSettings."""

    parts: Sequence[Part] = PARTS
    """What is repaired: router; experts, shared ones and dense layers' MLPs too; attention."""

    ridge: Ridge = 0.03
    """λ, relative to the diagonal of the inputs' Gram matrix; from 1e-6. "auto": the one of `RIDGES` with the lowest
    error on held-out tokens, map by map, or the map as it is where none lowers it."""

    drift: float = 1.0
    """Share of the residual stream's distance from the source's that maps writing to it make good; 0 to 1."""

    def __post_init__(self) -> None:
        """Checks every setting."""
        super().__post_init__()
        for part in self.parts:
            check_word("parts", part, PARTS)
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts={list(self.parts)}: expected some of {', '.join(PARTS)}, each once")
        if self.ridge != "auto" and not (isinstance(self.ridge, int | float) and 1e-6 <= self.ridge < math.inf):
            raise ValueError(f"ridge={self.ridge}: expected a number from 1e-6, or auto")
        if not 0 <= self.drift <= 1:
            raise ValueError(f"drift={self.drift}: expected a number from 0 to 1")

    @property
    def holds_out(self) -> bool:
        """Whether one in five sequences is held out, to choose λ or α by."""
        return "auto" in (self.ridge, self.alpha)
