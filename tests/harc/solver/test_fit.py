"""alpha="auto" never worsens held-out routing KL; Newton steps lower the exact objective and never raise it."""

import pytest
import torch
from scipy.optimize import minimize

from harc.solver.fit import fit_router
from harc.solver.newton import mean_kl, minimise_kl
from harc.solver.operator import PrecisionOperator
from harc.solver.preconditioner import make_preconditioner
from harc.solver.solve import solve_router
from tests.harc.solver.test_solver import problem


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_newton_reaches_the_minimum_scipy_finds(activation) -> None:
    features, routers = problem(tokens=(120, 90), hidden=5, experts=4, dtype=torch.float64)
    start = torch.stack(routers).mean(0)

    def objective(flat):
        w = torch.tensor(flat, dtype=torch.float64).reshape(start.shape).requires_grad_()
        value = torch.zeros((), dtype=torch.float64)
        for x, source in zip(features, routers, strict=True):
            z, target = x @ w.T, x @ source.T
            if activation == "softmax":
                p = target.softmax(1)
                value = value + (p * (p.log() - z.log_softmax(1))).sum() / len(x) / 2
            else:
                p = target.sigmoid()
                cross = torch.nn.functional.binary_cross_entropy_with_logits(z, p, reduction="sum")
                entropy = torch.nn.functional.binary_cross_entropy(p, p, reduction="sum")
                value = value + (cross - entropy) / len(x) / 2
        value.backward()
        return value.item(), w.grad.reshape(-1).numpy()

    best = minimize(objective, start.reshape(-1).numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    operator = PrecisionOperator(features, routers, activation=activation)
    w, history, _ = minimise_kl(
        features,
        routers,
        start,
        make_preconditioner(operator),
        activation=activation,
        steps=30,
        least_gain=1e-12,
        alpha=1.0,
    )
    assert history == sorted(history, reverse=True)
    assert history[-1] == pytest.approx(best.fun, rel=1e-6)
    assert mean_kl(features, routers, w, activation) == pytest.approx(history[-1])


def test_objective_kl_is_below_the_quadratic_solution() -> None:
    features, routers = problem(seed=1)
    routers = [3 * router for router in routers]
    start = torch.stack(routers).mean(0)
    quadratic = fit_router(features, routers, init=start)
    exact = fit_router(features, routers, init=start, objective="kl")
    assert exact.kl_steps[0] == pytest.approx(mean_kl(features, routers, quadratic.weight.double()), rel=1e-4)
    assert mean_kl(features, routers, exact.weight) < mean_kl(features, routers, quadratic.weight)


def test_auto_alpha_takes_the_lowest_held_out_kl() -> None:
    features = [problem(tokens=(400,), seed=seed)[0][0] for seed in (2, 12)]  # each domain has directions of its own
    routers = [0.3 * router for router in problem(seed=2)[1]]
    held = [x[:100] for x in features]
    fitted = [x[100:] for x in features]
    start = torch.stack(routers).mean(0)
    solution = fit_router(fitted, routers, init=start, held_out=held, alpha="auto")
    values = {
        alpha: mean_kl(held, routers, solve_router(fitted, routers, init=start, alpha=alpha).weight)
        for alpha in (0.5, 0.8, 0.9, 0.95, 0.99)
    }
    before = mean_kl(held, routers, start)
    judged = {"start": before, **{str(alpha): value for alpha, value in values.items()}}
    assert solution.held_out_kl == pytest.approx(judged, rel=1e-4)
    assert solution.alpha == min(values, key=values.get)
    assert solution.kept == (min(values.values()) >= before)
    assert mean_kl(held, routers, solution.weight) == pytest.approx(min(*values.values(), before), rel=1e-4)


def test_auto_alpha_keeps_the_start_when_nothing_beats_it() -> None:
    features, routers = problem(tokens=(400, 300), seed=3)
    held = [x[:100] for x in features]
    best = solve_router(held, routers, alpha=1.0, tol=1e-8).weight
    best = fit_router(held, routers, init=best, objective="kl", alpha=1.0).weight
    accidents = [x[100:114] for x in features]
    solution = fit_router(accidents, routers, init=best, held_out=held, alpha="auto")
    assert solution.kept
    assert torch.equal(solution.weight, best)
    assert solution.held_out_kl["start"] == pytest.approx(mean_kl(held, routers, best))
    assert min(solution.held_out_kl.values()) == solution.held_out_kl["start"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "auto"}, "held-out tokens"),
        ({"alpha": "auto", "beta": 1.0}, "exclude each other"),
        ({"objective": "l1"}, "objective=l1: expected one of quadratic, kl"),
        ({"objective": "kl", "hessian": "identity"}, "identity"),
    ],
)
def test_settings_that_do_not_fit_together(options, message) -> None:
    features, routers = problem()
    with pytest.raises(ValueError, match=message):
        fit_router(features, routers, init=routers[0], **options)
