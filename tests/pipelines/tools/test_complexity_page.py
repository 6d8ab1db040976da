"""Appendix C.1: exponents against power laws of their own, memory against the count of what is kept."""

import pytest

from pipelines.tools.complexity_page import Cost, exponent, exponent_of, measured, sizes_of

SMALL = {"tokens": 200, "hidden": 32, "experts": 8}


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    assert exponent([1, 2, 4, 8], [3 * size**power for size in (1, 2, 4, 8)]) == pytest.approx(power)


def test_only_the_rows_that_vary_a_size_count_for_it():
    costs = [Cost("tokens", {"tokens": size, "hidden": 1}, size**2.0, 1.0) for size in (1, 2, 4)]
    costs += [Cost("hidden", {"tokens": 1, "hidden": size}, 5.0, float(size)) for size in (1, 2, 4)]
    assert exponent_of(costs, "tokens", "seconds") == pytest.approx(2)
    assert exponent_of(costs, "hidden", "seconds") == pytest.approx(0)
    assert exponent_of(costs, "hidden", "megabytes") == pytest.approx(1)


def test_memory_is_that_of_features_probabilities_and_sums():
    for sizes in sizes_of("tokens", SMALL):
        kept = measured("tokens", sizes).megabytes * 1e6
        tokens, hidden, experts = sizes.values()
        features, per_token = 4 * tokens * hidden, 4 * tokens * experts
        sums = experts * hidden * (8 + 8 + 4)
        assert features + per_token <= kept <= features + 3 * per_token + sums + 64 * tokens
