"""Intervals by resampling problems, stratified by benchmark, paired across the rows of a table.

A row's accuracy on a benchmark is the mean over problems of the share of samples that are right. A resample draws
each benchmark's problems anew with replacement; every row of the table sees the same draws, so that the difference of
two rows' resamples is the paired bootstrap of their gain, for a benchmark, a domain's mean and the overall mean alike.
"""

import zlib
from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
_CHUNK = 1_000


def resampled_means(shares: np.ndarray, *, stratum: Hashable, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means over resampled problems, for several rows at once.

    Args:
        shares: of right samples, shape (problems, rows), in [0, 1].
        stratum: names the benchmark; equal strata of equal size get equal draws, whatever table they stand in.
        resamples: how many.
        seed: of the draws.

    Returns:
        Array of shape (resamples, rows).
    """
    problems = shares.shape[0]
    rng = np.random.default_rng([seed, zlib.crc32(repr(stratum).encode())])
    means = np.empty((resamples, shares.shape[1]))
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.integers(problems, size=(size, problems)) + np.arange(size)[:, None] * problems
        times = np.bincount(drawn.ravel(), minlength=size * problems).reshape(size, problems)
        means[start : start + size] = times @ shares / problems
    return means


def half_width(draws: np.ndarray) -> float:
    """Half the width of the 95 % percentile interval of one quantity's resamples."""
    low, high = interval(draws)
    return (high - low) / 2


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of one quantity's resamples."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def mean_of(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Resamples of the equally weighted mean of several quantities, each resampled on its own problems."""
    return np.mean(np.stack(parts), axis=0)
