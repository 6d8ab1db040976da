import math

import numpy as np
import pytest

from eval.statistics import accuracy, paired_gain


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


def test_a_gain_is_paired():
    baseline = [0, 3, 9, 12, 2, 7]
    gain = paired_gain(baseline, [count + 4 for count in baseline])
    assert (gain.mean, gain.low, gain.high) == (0.25, 0.25, 0.25)
    assert paired_gain(baseline, baseline[::-1]).mean == 0
    with pytest.raises(ValueError, match="6 against 5"):
        paired_gain(baseline, baseline[:5])


def test_one_problem_has_no_interval():
    assert accuracy([3], 16).half_width == 0
