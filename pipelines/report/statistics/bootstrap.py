"""The hierarchical bootstrap: seeds are resampled, then the problems of each drawn seed.

For replicates of a whole experiment (world, trainings, samples), whose spread between seeds no number of problems can
reduce. The plain bootstrap over problems is eval.statistics.resampled_means.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from eval.statistics import RESAMPLES, resampled_means, stratum_rng


def replicated_means(
    values: Sequence[np.ndarray], *, stratum: Hashable, weights: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Means over resampled problems of one seed, or over resampled seeds and their problems where there are several.

    Args:
        values: of each seed's problems, shape (problems of that seed, columns).
        stratum: names the set of problems.
        weights: of each seed's problems in its mean, by default the same for all.

    Returns:
        Array of shape (resamples, columns).
    """
    if len(values) == 1:
        return resampled_means(values[0], stratum=stratum, weights=None if weights is None else weights[0])
    return hierarchical_means(values, stratum=stratum, weights=weights)


def hierarchical_means(
    values: Sequence[np.ndarray],
    *,
    stratum: Hashable,
    weights: Sequence[np.ndarray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Means over resampled seeds and, within each drawn seed, its resampled problems; every seed weighs the same.

    Every stratum of equally many seeds is given the same seeds in a resample: benchmarks of one run are drawn together.
    With S seeds the variance between them comes out (S − 1) / S of the unbiased estimate, as in any bootstrap: two
    thirds for three seeds.

    Args:
        values: of each seed's problems, shape (problems of that seed, columns).
        stratum: names the set of problems, as for resampled_means.
        weights: of each seed's problems in its mean, by default the same for all.
        resamples: how many.
        seed: of the draws.

    Returns:
        Array of shape (resamples, columns).
    """
    count = len(values)
    drawn_seeds = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=resamples)
    rng = stratum_rng(seed, stratum)
    means = np.zeros((resamples, values[0].shape[1]))
    for index, of_seed in enumerate(values):
        problems, often = len(of_seed), drawn_seeds[:, index]
        share = np.ones(problems) if weights is None else np.asarray(weights[index], dtype=float)
        # A seed drawn twice has its problems drawn twice, independently.
        times = rng.multinomial(often * problems, np.full(problems, 1 / problems))
        total = np.where(often > 0, times @ share, 1.0)
        means += (often / (count * total))[:, None] * (times @ (share[:, None] * of_seed))
    return means
