"""Whether a difference is shown to be small: absence of evidence for an effect is not evidence of its absence.

Two one-sided tests at 5 % (Schuirmann 1987), which reject where the 90 % interval lies within the margin.
"""

from dataclasses import dataclass

import numpy as np

from eval.statistics import interval


@dataclass(frozen=True)
class Equivalence:
    """A difference, larger being better, held against the largest that does not matter.

    low, high: its 90 % interval. margin: in the same unit, above 0.
    """

    low: float
    high: float
    margin: float

    @property
    def equivalent(self) -> bool:
        """Whether the difference is smaller than the margin, in either direction."""
        return -self.margin < self.low and self.high < self.margin

    @property
    def harmless(self) -> bool:
        """Whether there is no harm as large as the margin (the test of non-inferiority, one-sided at 5 %)."""
        return self.low > -self.margin

    @property
    def verdict(self) -> str:
        """In words: equivalent, no harm, harm, or undecided."""
        if self.equivalent:
            return "equivalent"
        if self.harmless:
            return "no harm"
        return "harm" if self.high < -self.margin else "undecided"


def equivalence(draws: np.ndarray, margin: float) -> Equivalence:
    """The verdict on a paired difference from its bootstrap resamples.

    draws: of the difference, larger being better; margin: in the same unit.
    """
    return Equivalence(*interval(draws, 0.9), margin)
