"""Gram matrices of few tokens estimate those of all tokens, in fp32 and in int8 alike."""

import platform

import pytest
import torch

from harc.solver.operator import PrecisionOperator
from harc.solver.preconditioner import make_preconditioner
from harc.solver.sampled_gram import curvatures, draw, sampled_gram, sampled_gram_int8, token_norms
from harc.solver.solve import solve
from tests.harc.solver.test_solver import TOLERANCE, dense_solution, problem

needs_int8 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="int8 products are used on x86 processors only"
)


def test_draws_are_unbiased_and_keep_the_likely_ones() -> None:
    generator = torch.Generator().manual_seed(13)
    weights = torch.rand(500, generator=generator) ** 4
    weights[17] = 1e3
    values = torch.rand(500, generator=generator)
    estimates = []
    for seed in range(400):
        chosen, pi = draw(weights, 50, seed)
        assert 17 in chosen
        assert abs(len(chosen) - 50) <= 1
        estimates.append(float((values[chosen] / pi * weights[chosen]).sum()))
    assert sum(estimates) / len(estimates) == pytest.approx(float((values * weights).sum()), rel=1e-3)


@needs_int8
@pytest.mark.parametrize("outlier", [1.0, 30.0], ids=["even", "one long token"])
def test_int8_estimates_are_as_close_to_the_exact_matrix_as_fp32_ones(outlier) -> None:
    """Both scaled to a diagonal of 1; quantisation may add a hundredth to what drawing leaves."""
    features, routers = problem(tokens=(3000, 2000, 1000), hidden=24, seed=14)
    features[0][5] *= outlier
    operator = PrecisionOperator(features, routers, dtype=torch.float32)
    scale = operator.diagonal.rsqrt().float()
    everything = torch.cat(features).double()
    for expert, q in enumerate(curvatures(operator, slice(None))):
        x = everything * scale[expert]
        exact = x.T @ (q.double()[:, None] * x)
        norms = token_norms(operator, scale[expert : expert + 1].square())[0]
        chosen, pi = draw(q * norms, 1500, seed=expert)
        drawn = sampled_gram(operator, chosen, q[chosen] / pi) * scale[expert] * scale[expert][:, None]
        eight = sampled_gram_int8(operator, q, norms, scale[expert], 1500)
        assert torch.equal(eight, eight.T)
        error, reference = ((gram.double() - exact).abs().max() for gram in (eight, drawn))
        assert error < 2 * reference + 0.01 and reference < 0.1


@needs_int8
@pytest.mark.parametrize("variant", [{"alpha": 0.9}, {"alpha": 1.0}, {"activation": "sigmoid"}], ids=str)
def test_int8_blocks_keep_the_answer(variant, monkeypatch) -> None:
    monkeypatch.setattr("harc.solver.preconditioner.INT8_PAYS", True)  # on slower processors too
    features, routers = problem(tokens=(3000, 2000, 1000), hidden=16, seed=12)
    start = torch.stack(routers).mean(0).double()
    operator = PrecisionOperator(features, routers, dtype=torch.float32, **variant)
    solution = solve(operator, start, make_preconditioner(operator, "blocks", sampled=600), tol=1e-6)
    expected = dense_solution(features, routers, start, **variant)
    assert solution.converged and solution.iterations <= 20, (solution.reason, solution.iterations)
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


@needs_int8
def test_an_expert_that_no_token_reaches_has_an_empty_matrix() -> None:
    features, routers = problem(tokens=(900,), hidden=8, seed=15)
    operator = PrecisionOperator(features, routers, dtype=torch.float32)
    nothing = torch.zeros(900)
    assert not sampled_gram_int8(operator, nothing, torch.ones(900), torch.ones(8), 100).any()


@needs_int8
def test_a_process_without_tokens_adds_what_the_others_have() -> None:
    features, routers = problem(tokens=(900,), hidden=8, seed=15)
    operator = PrecisionOperator(features, routers, dtype=torch.float32)
    operator.reduce = lambda tensor: tensor + 1  # the sum over processes, of which another one holds all tokens
    gram = sampled_gram_int8(operator, torch.empty(0), torch.empty(0), torch.ones(8), 100)
    assert torch.equal(gram, torch.ones(8, 8))
