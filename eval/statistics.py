"""Means and their intervals by resampling problems, each weighing the same (METHOD section 8).

Values that stand side by side are resampled with the same draws: the difference of two columns' resamples is the paired
bootstrap of their difference (Miller, arXiv 2411.00640).
"""

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CHUNK = 1_000


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
    shares = np.asarray(counts, dtype=float) / samples
    draws = resampled_means(shares[:, None], stratum="accuracy", seed=seed)[:, 0]
    return Interval(float(shares.mean()), *interval(draws))


def resampled_means(
    values: np.ndarray,
    *,
    stratum: Hashable,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Means over resampled problems, for several columns at once.

    Args:
        values: of each problem, shape (problems, columns).
        stratum: names the set of problems; equal strata of equal size get equal draws, whatever table they stand in.
        weights: of each problem in the mean (a sequence's tokens, for a loss a token), by default the same for all.
        resamples: how many.
        seed: of the draws.

    Returns:
        Array of shape (resamples, columns).
    """
    problems = len(values)
    weights = np.ones(problems) if weights is None else np.asarray(weights, dtype=float)
    rng = stratum_rng(seed, stratum)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.integers(problems, size=(size, problems)) + np.arange(size)[:, None] * problems
        times = np.bincount(drawn.ravel(), minlength=size * problems).reshape(size, problems)
        means[start : start + size] = times @ (weights[:, None] * values) / (times @ weights)[:, None]
    return means


def stratum_rng(seed: int, stratum: Hashable) -> np.random.Generator:
    """The generator of a stratum's draws."""
    return np.random.default_rng([seed, zlib.crc32(repr(stratum).encode())])


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of one quantity's resamples."""
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def half_width(draws: np.ndarray) -> float:
    """Half the width of the 95 % percentile interval of one quantity's resamples."""
    low, high = interval(draws)
    return (high - low) / 2


def mean_of(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Resamples of the equally weighted mean of several quantities, each resampled on its own problems."""
    return np.mean(np.stack(parts), axis=0)
