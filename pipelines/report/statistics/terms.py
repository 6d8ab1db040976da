"""An estimate problem by problem: what a permutation test flips, and what its spread is divided by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Terms:
    """What each problem adds to an estimate, which is the sum of all.

    values: of each problem, in the estimate's unit.
    deviations: of each problem from the mean of its benchmark and seed, in the same unit; the sum of their squares is
        the estimate's variance over problems.
    noise: variance of each value over other samples of the same problem; 0 where nothing is sampled, NaN where a single
        sample cannot tell.
    seeds: which replicate each problem is of, from 0.
    """

    values: np.ndarray
    deviations: np.ndarray
    noise: np.ndarray
    seeds: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __sub__(self, other: "Terms") -> "Terms":
        """The difference of two estimates on the same problems, each with samples of its own."""
        return Terms(
            self.values - other.values, self.deviations - other.deviations, self.noise + other.noise, self.seeds
        )

    @property
    def total(self) -> float:
        """The estimate."""
        return float(self.values.sum())


def weighted_terms(
    values: Sequence[np.ndarray], weights: Sequence[np.ndarray] | None = None, noise: Sequence[np.ndarray] | None = None
) -> Terms:
    """The terms of a mean over problems, and of the mean over seeds of that.

    Args:
        values: of each seed's problems.
        weights: of each seed's problems in its mean, by default the same for all.
        noise: variance of each value over other samples, by default none.
    """
    parts = []
    for seed, of_seed in enumerate(values):
        count = len(of_seed)
        share = np.ones(count) if weights is None else np.asarray(weights[seed], dtype=float)
        share = share / share.sum() / len(values)
        mean = (share * of_seed).sum() / share.sum()
        unbiased = np.sqrt(count / (count - 1)) if count > 1 else 1.0
        own = np.zeros(count) if noise is None else noise[seed]
        parts.append(Terms(share * of_seed, unbiased * share * (of_seed - mean), share**2 * own, np.full(count, seed)))
    return _joined(parts)


def mean_terms(parts: Sequence[Terms], *, same_problems: bool) -> Terms:
    """The terms of the mean of several estimates, each with samples of its own.

    same_problems: whether they are of the same problems, as methods are; else of different ones, as benchmarks are.
    """
    count = len(parts)
    if not same_problems:
        scaled = [Terms(one.values / count, one.deviations / count, one.noise / count**2, one.seeds) for one in parts]
        return _joined(scaled)
    return Terms(
        np.mean([one.values for one in parts], axis=0),
        np.mean([one.deviations for one in parts], axis=0),
        np.sum([one.noise for one in parts], axis=0) / count**2,
        parts[0].seeds,
    )


def _joined(parts: Sequence[Terms]) -> Terms:
    fields = ("values", "deviations", "noise", "seeds")
    return Terms(*(np.concatenate([getattr(one, name) for one in parts]) for name in fields))
