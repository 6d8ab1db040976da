"""Sums over tokens, and the step from them, against dense float64 least squares."""

import pytest
import torch

from harc.repairing.least_squares import Moments, fit_step
from harc.repairing.settings import RIDGES
from tests.harc.repairing.oracle import ridge_step


def problem(tokens: int, seed: int, noise: float = 0.1):
    slope = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 8, generator=generator)
    x[:, 3] = 0  # an input that never fires
    y = torch.randn(tokens, 5, generator=generator) * noise + x @ slope
    return x, y, torch.rand(tokens, generator=generator)


def moments(x, y, weight, old, blocks: int = 3) -> Moments:
    sums = Moments.empty(8, [5], torch.device("cpu"))
    for part in torch.arange(len(x)).chunk(blocks):
        error = y[part] - x[part] @ old.T
        sums.add(x[part], [error], [y[part].square().sum(1)], weight[part])
    return sums


@pytest.mark.parametrize("ridge", [1e-6, 0.03, 1.0])
def test_step_equals_dense_weighted_least_squares(ridge) -> None:
    x, y, weight = problem(200, 0)
    old = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    step = fit_step(moments(x, y, weight, old), moments(x[:0], y[:0], weight[:0], old), 0, old, torch.float64, ridge)
    expected = ridge_step([(x.double(), (y - x @ old.T).double(), weight.double())], ridge)
    assert (step.weight - old - expected).norm() < 1e-5 * expected.norm()  # products are in float32
    assert (step.weight - old)[:, 3].abs().max() == 0
    error = (weight * (y - x @ step.weight.float().T).square().sum(1)).sum()
    assert step.error_after == pytest.approx(float(error), rel=1e-4)
    assert step.error_after < step.error_before


def test_auto_takes_the_ridge_with_the_least_error_held_out() -> None:
    (x, y, weight), (held_x, held_y, held_weight) = problem(12, 0, 2.0), problem(500, 3, 2.0)
    old = torch.zeros(5, 8)
    step = fit_step(
        moments(x, y, weight, old), moments(held_x, held_y, held_weight, old), 0, old, torch.float32, "auto"
    )
    errors = {}
    for ridge in RIDGES:
        new = ridge_step([(x.double(), y.double(), weight.double())], ridge).float()
        errors[ridge] = float((held_weight * (held_y - held_x @ new.T).square().sum(1)).sum())
    assert step.ridge == min(errors, key=errors.get)
    assert step.held_out == pytest.approx(errors, rel=1e-4)


def test_auto_leaves_a_map_that_only_gets_worse_held_out() -> None:
    x, y, weight = problem(9, 0)
    old = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    held = moments(x, x @ old.T, weight, old)
    step = fit_step(moments(x, y, weight, old), held, 0, old, torch.float32, "auto")
    assert step.weight is None
    assert step.error_after == step.error_before
    assert set(step.held_out) == set(RIDGES)


def test_sums_that_are_not_finite_are_refused() -> None:
    x, y, weight = problem(9, 0)
    y[0, 0] = torch.inf
    old = torch.zeros(5, 8)
    with pytest.raises(ValueError, match="NaN or Inf"):
        fit_step(moments(x, y, weight, old), moments(x[:0], y[:0], weight[:0], old), 0, old, torch.float32, 0.1)
