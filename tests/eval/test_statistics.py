import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from eval.statistics import accuracy


def test_accuracy_is_the_mean_share_of_right_samples():
    assert accuracy([16, 8, 0, 4], 16).mean == pytest.approx((1 + 0.5 + 0 + 0.25) / 4)


def test_the_interval_matches_the_normal_approximation_on_many_problems():
    rng = np.random.default_rng(0)
    counts = rng.binomial(16, rng.beta(2, 2, size=400))
    spread = np.std(counts / 16) / math.sqrt(400)
    assert accuracy(counts.tolist(), 16).half_width == pytest.approx(1.96 * spread, rel=0.05)


def test_the_interval_repeats_for_the_same_seed():
    counts = list(range(17)) * 3
    assert accuracy(counts, 16, seed=4) == accuracy(counts, 16, seed=4)


def test_the_interval_is_scipys():
    shares = np.random.default_rng(0).beta(2, 2, size=60)
    expected = bootstrap((shares,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    found = accuracy((16 * shares).tolist(), 16)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_one_problem_has_no_interval():
    assert accuracy([3], 16).half_width == 0
