"""Merging weights by domain, when the domains are not those that the weights were published for."""

import pytest

from pipelines.routers import _ordered

PAPER = {"math": 0.6, "code": 0.4}


def test_weights_follow_the_order_of_the_domains_unchanged():
    assert _ordered(PAPER, ["code", "math"]) == [0.4, 0.6]


def test_a_domain_without_a_weight_gets_the_mean_and_the_sum_stays():
    chat, math, code = _ordered(PAPER, ["chat", "math", "code"])
    assert chat + math + code == pytest.approx(1.0)
    assert chat == pytest.approx(1 / 3) and math / code == pytest.approx(0.6 / 0.4)


@pytest.mark.parametrize("weights", [{"maths": 1.0}, {"math": 0.6, "code": 0.4, "law": 1.0}, {}])
def test_weights_of_other_domains_are_refused(weights):
    with pytest.raises(ValueError, match=r"merge\.weights names .* the domains are \['code', 'math'\]"):
        _ordered(weights, ["math", "code"])
