"""The smallest difference that a comparison could have seen."""

import numpy as np
from scipy.stats import norm


def standard_error(draws: np.ndarray) -> float:
    """Of a quantity, from its bootstrap resamples."""
    return float(np.std(draws, ddof=1))


def minimum_detectable_effect(error: float, *, power: float = 0.8, level: float = 0.05, tests: int = 1) -> float:
    """The true difference that a two-sided test finds with probability `power`: (z_{1 − level / 2} + z_power) · error.

    Args:
        error: standard error of the paired difference.
        power: probability of finding it.
        level: of the test.
        tests: how many the level is shared by (Bonferroni, to which Holm's first step is equal).

    Source: Miller, Adding Error Bars to Evals, arXiv 2411.00640.
    """
    return float((norm.ppf(1 - level / (2 * tests)) + norm.ppf(power)) * error)
