"""Each statistic against closed forms and SciPy: variances, exact permutations, power of a z-test, worked examples."""

import numpy as np
import pytest
from scipy import stats

from pipelines.report.statistics import (
    equivalence,
    hierarchical_means,
    holm,
    interval,
    mean_of,
    minimum_detectable_effect,
    resampled_means,
    sign_flip_test,
    spread,
    standard_error,
    weighted_terms,
)

RNG = np.random.default_rng(0)


def test_resampled_means_have_the_variance_of_a_mean_and_are_paired() -> None:
    values = RNG.normal(size=(150, 2))
    draws = resampled_means(values, stratum="a")
    # 10,000 resamples give a standard error to 0.7 %.
    assert draws.std(0) == pytest.approx(values.std(0) / np.sqrt(150), rel=0.03)
    difference = values[:, 1] - values[:, 0]
    assert (draws[:, 1] - draws[:, 0]).std() == pytest.approx(difference.std() / np.sqrt(150), rel=0.03)
    assert np.array_equal(draws, resampled_means(values, stratum="a"))
    assert not np.array_equal(draws, resampled_means(values, stratum="b"))


def test_a_weighted_resample_is_the_ratio_of_resampled_sums() -> None:
    losses, tokens = RNG.gamma(2, size=200), RNG.integers(5, 80, size=200)
    draws = resampled_means(losses[:, None], weights=tokens, stratum="loss")[:, 0]
    expected = stats.bootstrap(
        (losses, tokens),
        lambda loss, count, axis: (loss * count).sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert standard_error(draws) == pytest.approx(expected.standard_error, rel=0.03)
    assert draws.mean() == pytest.approx((losses * tokens).sum() / tokens.sum(), rel=0.01)


def test_hierarchical_variance_is_between_seeds_plus_within() -> None:
    seeds = [RNG.normal(loc=shift, size=(count, 1)) for shift, count in ((0, 80), (1, 120), (3, 60))]
    draws = hierarchical_means(seeds, stratum="a")
    between = np.var([seed.mean() for seed in seeds]) / 3
    within = np.mean([seed.var() / len(seed) for seed in seeds]) / 3
    assert draws.var() == pytest.approx(between + within, rel=0.05)
    assert draws.mean() == pytest.approx(np.mean([seed.mean() for seed in seeds]), abs=0.03)


def test_hierarchical_resamples_of_one_seed_are_the_plain_bootstrap() -> None:
    values, tokens = RNG.normal(size=(100, 2)), RNG.integers(5, 80, size=100)
    draws = hierarchical_means([values], weights=[tokens], stratum="a")
    plain = resampled_means(values, weights=tokens, stratum="a")
    assert draws.std(0) == pytest.approx(plain.std(0), rel=0.03)


def test_benchmarks_of_one_run_are_given_the_same_seeds() -> None:
    seeds = [np.full((50, 1), value) for value in (0.0, 1.0, 5.0)]  # no spread within a seed
    first, second = (hierarchical_means(seeds, stratum=name)[:, 0] for name in ("a", "b"))
    assert np.allclose(first, second)


def test_sign_flips_equal_scipys_permutation_test() -> None:
    few, many = RNG.normal(0.4, 1, size=9), RNG.normal(0.15, 1, size=150)
    for differences, tolerance in ((few, 1e-12), (many, 0.01)):
        expected = stats.permutation_test(
            (differences, np.zeros(len(differences))),
            lambda a, b, axis: (a - b).mean(axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=50_000,
            rng=np.random.default_rng(0),
        ).pvalue
        assert sign_flip_test(differences / len(differences)) == pytest.approx(expected, abs=tolerance)


def test_ties_and_zeros_do_not_count_as_evidence() -> None:
    assert sign_flip_test(np.zeros(10)) == 1
    assert sign_flip_test(np.array([0.1, 0.1, 0.0])) == 0.5  # two of four patterns are as far from zero
    assert sign_flip_test(np.array([0.1] * 3 + [0.3])) == sign_flip_test(np.array([1.0] * 3 + [3.0])) == 0.125


def test_p_values_under_no_effect_are_uniform() -> None:
    found = [sign_flip_test(RNG.normal(size=40), resamples=500, seed=i) for i in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 400))


def test_holm_on_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, each no smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    error, critical = 0.7, stats.norm.ppf(0.975)
    effect = minimum_detectable_effect(error)
    power = stats.norm.sf(critical - effect / error) + stats.norm.cdf(-critical - effect / error)
    assert power == pytest.approx(0.8, abs=1e-5)  # the formula leaves out the wrong tail
    assert minimum_detectable_effect(error, tests=6) > effect


def test_equivalence_is_an_interval_within_the_margin() -> None:
    draws = RNG.normal(0.5, 1, size=20_000)
    low, high = interval(draws, 0.9)
    assert (low, high) == pytest.approx(stats.norm(0.5, 1).interval(0.9), abs=0.05)
    assert equivalence(draws, high + 0.01).verdict == "equivalent"
    assert equivalence(draws, (high - low) / 2).verdict == "no harm"
    assert equivalence(draws, 0.5).verdict == "undecided"
    assert equivalence(draws - 5, 1).verdict == "harm"


def test_equivalence_is_two_one_sided_t_tests() -> None:
    differences = RNG.normal(0.02, 1, size=400)
    draws = resampled_means(differences[:, None], stratum="a")[:, 0]
    for margin, known in ((0.15, True), (0.05, False)):
        lower = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        assert equivalence(draws, margin).equivalent == (max(lower, upper) < 0.05) == known
        assert equivalence(draws, margin).harmless == (lower < 0.05)


def test_a_mean_over_methods_keeps_what_they_have_in_common() -> None:
    common, own = RNG.normal(size=(300, 1)), RNG.normal(size=(300, 6))
    draws = resampled_means(common + own, stratum="a")
    mean = mean_of([draws[:, column] for column in range(6)])
    assert standard_error(mean) == pytest.approx((common + own).mean(1).std() / np.sqrt(300), rel=0.03)


def test_spread_recovers_the_variances_that_the_data_were_drawn_with() -> None:
    seeds, problems, samples = 400, 50, 8
    # Accuracy of each problem: 0.5, moved by its seed (σ 0.05) and by itself (σ 0.1), drawn 8 times.
    true = 0.5 + RNG.normal(0, 0.05, (seeds, 1)) + RNG.normal(0, 0.1, (seeds, problems))
    shares = RNG.binomial(samples, np.clip(true, 0, 1)) / samples
    found = spread(weighted_terms(list(shares), noise=list(shares * (1 - shares) / (samples - 1))))
    count = seeds * problems
    # 400 seeds give a variance to 7 %, a standard deviation to 3.5 %.
    assert found.seeds == pytest.approx(0.05 / seeds**0.5, rel=0.12)
    assert found.problems == pytest.approx(0.1 / count**0.5, rel=0.03)
    assert found.samples == pytest.approx((np.mean(true * (1 - true)) / samples / count) ** 0.5, rel=0.02)


def test_spread_of_one_seed_is_the_standard_error_and_says_nothing_of_seeds() -> None:
    values, tokens = RNG.normal(size=120), RNG.integers(5, 80, size=120)
    found = spread(weighted_terms([values], [tokens]))
    assert found.seeds is None and found.samples == 0
    draws = resampled_means(values[:, None], weights=tokens, stratum="x")
    assert found.problems == pytest.approx(draws.std(), rel=0.03)


def test_a_difference_has_the_sample_noise_of_both_and_one_sample_cannot_tell() -> None:
    one, other = (weighted_terms([RNG.random(20)], noise=[np.full(20, noise)]) for noise in (0.1, 0.2))
    assert (one - other).noise.sum() == pytest.approx(0.3 / 20)
    alone = spread(weighted_terms([RNG.random(20)], noise=[np.full(20, np.nan)]))
    assert np.isnan(alone.samples) and alone.problems > 0
