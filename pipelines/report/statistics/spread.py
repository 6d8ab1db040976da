"""Where an estimate's spread comes from: the samples of each problem, the problems, the seeds."""

from dataclasses import dataclass

import numpy as np

from pipelines.report.statistics.terms import Terms


@dataclass(frozen=True)
class Spread:
    """Standard errors that each source alone would give, in the estimate's unit; the squares add up.

    samples: other answers of the same models to the same problems; NaN where one sample a problem cannot tell.
    problems: other problems of the same kind.
    seeds: replicates of world, trainings and calibration text; None for a single one, which cannot tell.
    """

    samples: float
    problems: float
    seeds: float | None


def spread(terms: Terms) -> Spread:
    """Divides an estimate's variance among its sources, by the method of moments; none is taken to be below 0.

    The variance over problems holds that over samples (Miller, arXiv 2411.00640, section 3.1), and the variance between
    S seeds holds both: σ²_seeds = s² − their mean within a seed.
    """
    noise, within = float(terms.noise.sum()), float((terms.deviations**2).sum())
    problems = max(0.0, within - (0.0 if np.isnan(noise) else noise)) ** 0.5
    count = int(terms.seeds.max()) + 1
    if count == 1:
        return Spread(noise**0.5, problems, None)
    estimates = count * np.bincount(terms.seeds, weights=terms.values)
    inside = count**2 * np.bincount(terms.seeds, weights=terms.deviations**2).mean()
    between = max(0.0, float(estimates.var(ddof=1)) - inside)
    return Spread(noise**0.5, problems, (between / count) ** 0.5)
