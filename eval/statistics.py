"""Accuracy, its interval, and a paired gain: always over problems, each weighing the same (METHOD section 8)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def accuracy(counts: Sequence[int], samples: int, seed: int = 0) -> Interval:
    """Mean over problems of the share of samples that are right, bootstrapped over problems.

    Args:
        counts: right samples of each problem.
        samples: samples drawn of each problem.
        seed: of the resampling.
    """
    return _mean(np.asarray(counts, dtype=float) / samples, seed)


def paired_gain(baseline: Sequence[int], treated: Sequence[int], samples: int = 16, seed: int = 0) -> Interval:
    """Gain in accuracy of `treated` over `baseline` on the same problems, bootstrapped over problems in pairs.

    Args:
        baseline: right samples of each problem without the treatment.
        treated: the same with it, in the same order.
        samples: samples drawn of each problem, the same number for both.
        seed: of the resampling.

    Raises:
        ValueError: the two are not counts of the same number of problems.
    """
    if len(baseline) != len(treated):
        raise ValueError(f"paired counts need the same problems: {len(baseline)} against {len(treated)}")
    return _mean((np.asarray(treated, dtype=float) - np.asarray(baseline, dtype=float)) / samples, seed)


def _mean(values: np.ndarray, seed: int) -> Interval:
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        vectorized=True,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
