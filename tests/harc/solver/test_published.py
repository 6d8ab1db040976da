"""The published solver: the same equations as ours, solved as the authors solve them."""

from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from harc.calibration.settings import CalibrationSettings
from harc.solver.fit import fit_router
from harc.solver.settings import SolveSettings
from harc.solver.solve import solve_router
from tests.harc.solver.test_solver import dense_solution, problem
from tests.places import ROOT


@pytest.mark.parametrize(
    "variant",
    [{"alpha": 0.9}, {"alpha": 0.0}, {"beta": 0.1}, {"hessian": "diagonal"}, {"activation": "sigmoid"}],
    ids=str,
)
def test_equals_dense_solve(variant) -> None:
    features, routers = problem()
    start = torch.stack(routers).mean(0)
    solution = solve_router(features, routers, init=start, solver="published", **variant)
    expected = dense_solution(features, routers, start.double(), **variant)
    # a residual of 1e-6 in fp32, times the condition number, which is 1e2 to 1e3 here
    assert (solution.weight - expected).norm() / expected.norm() < 1e-4
    assert solution.preconditioner == "none" and solution.residuals[-1] <= 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_takes_the_iterations_of_the_restatement_that_recomputes_everything(seed) -> None:
    spec = spec_from_file_location("restated", ROOT / "benchmarks" / "published.py")
    restated = module_from_spec(spec)
    spec.loader.exec_module(restated)
    features, routers = problem(tokens=(900, 700), hidden=24, experts=8, seed=seed)
    start = torch.stack(routers).mean(0)
    solution = fit_router(features, routers, init=start, solver="published")
    weight, iterations, residual = restated.solve(features, routers, start)
    assert abs(solution.iterations - iterations) <= 1  # sums in another order may cross the tolerance one later
    assert len(solution.residuals) == solution.iterations + 1
    assert solution.residuals[-1] <= 1e-6 and residual <= 1e-6
    assert (solution.weight - weight).norm() / weight.norm() < 1e-4  # as above
    assert solution.iterations > solve_router(features, routers, init=start).iterations


def test_a_residual_that_is_believed_but_not_reached_is_told_from_one_that_is() -> None:
    features, routers = problem(seed=3)
    features = [x + 3 for x in features]  # a common offset, of which right-hand side and first product lose digits
    solution = solve_router(features, routers, solver="published", tol=1e-7)
    assert solution.residuals[-1] <= 1e-7 < solution.residual
    assert not solution.converged and "believed, but not reached" in solution.reason


def test_the_limit_of_iterations_ends_it() -> None:
    solution = solve_router(*problem(), solver="published", max_iter=3)
    assert solution.iterations == 3 and not solution.converged and "iteration limit" in solution.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "auto"}, "no alpha=auto"),
        ({"objective": "kl"}, "no objective=kl"),
        ({"hessian": "identity"}, "no hessian=identity"),
        ({"preconditioner": "blocks"}, "no preconditioner=blocks"),
    ],
)
def test_what_the_authors_do_not_have_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SolveSettings(solver="published", **options)


def test_other_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="no target=source_inputs"):
        CalibrationSettings(solver="published", target="source_inputs")
    features, routers = problem()
    logits = [x @ w.T for x, w in zip(features, routers, strict=True)]
    with pytest.raises(ValueError, match="leave out targets"):
        solve_router(features, routers, logits, solver="published")
