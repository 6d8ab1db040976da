"""The paired permutation test: under no effect, which of two rows a problem's result belongs to is arbitrary."""

import numpy as np

RESAMPLES = 10_000
_CHUNK = 1_000


def sign_flip_test(terms: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of a sum of paired differences, by flipping the sign of each.

    Exact where there are no more sign patterns than resamples; else (1 + hits) / (1 + resamples), which is never 0.

    Args:
        terms: differences problem by problem, each times its weight in the estimate, so that the estimate is their sum.
            For a mean over several methods, the mean of their terms: the same problems are flipped together.
        resamples: sign patterns drawn.
        seed: of the draws.
    """
    terms = np.asarray(terms, dtype=float)
    terms = terms[terms != 0]  # no sign to flip
    least = abs(terms.sum()) - 1e-12 * np.abs(terms).sum()  # rounding must not set apart patterns of equal sums
    if 2 ** min(len(terms), 63) <= resamples:
        patterns = np.arange(2 ** len(terms))[:, None] >> np.arange(len(terms)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ terms) >= least))
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        signs = 1 - 2 * rng.integers(2, size=(size, len(terms)), dtype=np.int8)
        hits += int((np.abs(signs @ terms) >= least).sum())
    return (1 + hits) / (1 + resamples)
