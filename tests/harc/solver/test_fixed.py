"""Columns of W that stay, such as a bias that is kept: the others solve the dense system without them."""

import pytest
import torch

from harc.solver.fit import fit_router
from harc.solver.objectives import RouterProblem, refined
from harc.solver.solve import solve_router
from tests.harc.solver.test_solver import TOLERANCE, VARIANTS, dense_precision, problem
from tests.harc.solver.test_targets import noisy_targets, stated_form


def biased(**options):
    """Features that end in 1, as for a router with a bias, and large biases."""
    features, routers = problem(**options)
    for index, (x, w) in enumerate(zip(features, routers, strict=True)):
        x[:, -1] = 1.0
        w[:, -1] = torch.linspace(-1.5, 1.5, len(w)).roll(index)
    return features, routers


def dense_beside(features, routers, start, alpha=0.9, beta=None, hessian="full", activation="softmax"):
    """The dense float64 solve of the free columns' equations."""
    free = torch.ones(start.shape, dtype=torch.bool)
    free[:, -1] = False
    free = free.reshape(-1)
    matrices = [dense_precision(x, w, alpha, beta, hessian, activation) for x, w in zip(features, routers, strict=True)]
    residual = sum(m @ (w.double() - start).reshape(-1) for m, w in zip(matrices, routers, strict=True))[free]
    step = torch.linalg.pinv(sum(matrices)[free][:, free], hermitian=True, rtol=1e-11) @ residual
    weight = start.reshape(-1).clone()
    weight[free] += step
    return weight.reshape(start.shape)


@pytest.mark.parametrize("preconditioner", ["blocks", "shared", "none"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_free_columns_equal_the_dense_solve_and_the_last_stays(variant, preconditioner) -> None:
    features, routers = biased(dtype=torch.float64, seed=40)
    start = routers[0] + 0.3
    solution = solve_router(features, routers, init=start, fixed=1, tol=1e-10, preconditioner=preconditioner, **variant)
    expected = dense_beside(features, routers, start, **variant)
    assert solution.converged, solution.reason
    assert torch.equal(solution.weight[:, -1], start[:, -1])
    assert (solution.weight - expected).norm() / expected.norm() < 1e-8
    solved = solve_router(features, routers, init=start, tol=1e-10, **variant).weight
    if variant.get("alpha") != 0.0:  # a diagonal does not couple columns
        assert (solved - expected)[:, :-1].norm() / expected.norm() > 1e-3


@pytest.mark.parametrize("preconditioner", ["blocks", "shared"])
def test_float32_work_equals_it_at_the_default_tolerance(preconditioner) -> None:
    features, routers = biased(tokens=(3000, 2000), hidden=16, seed=41)
    start = torch.stack(routers).mean(0)
    solution = solve_router(features, routers, init=start, fixed=1, dtype=torch.float32, preconditioner=preconditioner)
    expected = dense_beside(features, routers, start.double())
    assert solution.converged and torch.equal(solution.weight[:, -1], start[:, -1])
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


def test_targets_beside_a_fixed_column_give_the_minimum_of_the_stated_form() -> None:
    features, routers = biased(dtype=torch.float64, seed=42)
    targets, start = noisy_targets(features, routers), routers[0] + 0.1
    weight = solve_router(features, routers, targets, init=start, fixed=1, tol=1e-11).weight
    slope = torch.autograd.functional.jacobian(lambda w: stated_form(w, features, routers, targets), weight)
    before = torch.autograd.functional.jacobian(lambda w: stated_form(w, features, routers, targets), start)
    assert slope[:, :-1].norm() < 1e-9 * before.norm() < slope[:, -1].norm()


@pytest.mark.parametrize("options", [{"objective": "kl"}, {"alpha": "auto"}], ids=str)
def test_other_fits_leave_it_too(options) -> None:
    features, routers = biased(tokens=(400, 300), dtype=torch.float64, seed=43)
    start = torch.stack(routers).mean(0)
    start[:, :-1] += torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    held = [x[:80] for x in features]
    fitted = [x[80:] for x in features]
    solution = fit_router(fitted, routers, init=start, held_out=held, fixed=1, **options)
    assert not solution.kept
    assert torch.equal(solution.weight[:, -1], start[:, -1])
    if options.get("objective") == "kl":
        assert solution.kl_steps[-1] <= solution.kl_steps[0]


def test_a_registered_objective_that_changes_it_is_refused(monkeypatch) -> None:
    features, routers = biased(seed=44)
    monkeypatch.setitem(__import__("harc.solver.objectives", fromlist=["_"])._OBJECTIVES, "moves", lambda _, w: w + 1)
    with pytest.raises(ValueError, match="changed the bias, which bias=keep holds fixed"):
        refined("moves", RouterProblem(features, routers, None, "softmax"), routers[0].double(), fixed=1)


def test_the_published_solver_has_no_fixed_columns() -> None:
    with pytest.raises(ValueError, match="leave out fixed columns"):
        solve_router(*biased(), fixed=1, solver="published")
