"""Routing measures against worked examples and torch.distributions."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

import harc
from harc.measures import kl_on_features

GENERATOR = torch.Generator().manual_seed(0)
SOURCE, MERGED = (torch.randn(50, 8, generator=GENERATOR) * 3 for _ in range(2))


def test_routing_kl_equals_torch_distributions() -> None:
    softmax = kl_divergence(Categorical(logits=SOURCE), Categorical(logits=MERGED))
    assert torch.allclose(harc.routing_kl(SOURCE, MERGED), softmax, atol=1e-5)
    sigmoid = kl_divergence(Bernoulli(logits=SOURCE), Bernoulli(logits=MERGED)).sum(-1)
    assert torch.allclose(harc.routing_kl(SOURCE, MERGED, "sigmoid"), sigmoid, atol=1e-4)


def test_routing_kl_ignores_a_constant_and_survives_large_logits() -> None:
    assert torch.allclose(harc.routing_kl(SOURCE, SOURCE + 5), torch.zeros(50), atol=1e-5)
    assert torch.isfinite(harc.routing_kl(SOURCE * 1000, MERGED * 1000)).all()
    assert torch.isfinite(harc.routing_kl(SOURCE * 1000, MERGED * 1000, "sigmoid")).all()


def test_mismatch_compares_sets() -> None:
    source = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    merged = torch.tensor([[2.0, 3.0, 1.0, 0.0], [3.0, 0.0, 1.0, 2.0]])
    assert harc.mismatch(source, merged, 2).tolist() == [False, True]
    assert harc.mismatch(source, merged, 1).tolist() == [True, False]
    assert harc.mismatch(source, merged, 4).tolist() == [False, False]
    with pytest.raises(ValueError, match="top_k is 5"):
        harc.mismatch(source, merged, 5)


def test_overlap_is_the_share_of_experts_in_both() -> None:
    source, merged = torch.tensor([[3, 1], [0, 2], [5, 4]]), torch.tensor([[1, 3], [2, 6], [0, 1]])
    assert harc.overlap(source, merged).tolist() == [1, 0.5, 0]


def test_logit_shift_is_relative_to_the_source() -> None:
    source, merged = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]])
    assert float(harc.logit_shift(source, merged)) == pytest.approx(0.1)


def test_bfloat16_logits_are_widened() -> None:
    assert harc.routing_kl(SOURCE.bfloat16(), MERGED.bfloat16()).dtype == torch.float32


def test_kl_on_features_is_the_mean_over_tokens() -> None:
    x = torch.randn(3000, 16, generator=GENERATOR)
    a, b = (torch.randn(8, 16, generator=GENERATOR) for _ in range(2))
    expected = float(harc.routing_kl(x @ a.T, x @ b.T).mean())
    assert kl_on_features(x, a, b) == pytest.approx(expected, rel=1e-5)
