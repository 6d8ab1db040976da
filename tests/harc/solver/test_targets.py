"""Target logits: the solve minimises the form that harc.solver.operator states; no fit is worse on held-out tokens."""

import pytest
import torch

from harc.measures import routing_kl
from harc.solver.fit import fit_router
from harc.solver.newton import mean_kl, minimise_kl
from harc.solver.operator import PrecisionOperator
from harc.solver.preconditioner import make_preconditioner
from harc.solver.solve import solve_router
from tests.harc.solver.test_solver import TOLERANCE, VARIANTS, problem


def noisy_targets(features, routers, noise=0.7, seed=3):
    """Each source's logits on inputs of its own: the merged model's, moved as a whole and token by token."""
    generator = torch.Generator().manual_seed(seed)
    moved = [
        x.double()
        + 0.3 * torch.randn(x.shape[1], generator=generator)
        + noise * torch.randn(x.shape, generator=generator)
        for x in features
    ]
    return [(x @ w.double().T).to(w.dtype) for x, w in zip(moved, routers, strict=True)]


def stated_form(w, features, routers, targets, alpha=0.9, beta=None, hessian="full", activation="softmax"):
    """Σ_i coupling · ½ E[(z − W x)ᵀ H(p) (z − W x)] + damping · ½ Σ D_i (W_i − W)², token by token."""
    coupling, damping = (alpha, 1 - alpha) if beta is None else (1, beta)
    value = torch.zeros((), dtype=torch.float64)
    for x, router, z in zip(features, routers, targets, strict=True):
        x, router, z = x.double(), router.double(), z.double()
        p = z.softmax(1) if activation == "softmax" else z.sigmoid()
        error = z - x @ w.T
        q = torch.ones_like(p) if hessian == "identity" else p * (1 - p)
        if hessian == "full" and activation == "softmax":
            bent = (p * error.square()).sum(1) - (p * error).sum(1).square()
        else:
            bent = (q * error.square()).sum(1)
        diagonal = torch.einsum("te,tj->ej", q, x.square()) / len(x)
        value = value + coupling * bent.mean() / 2 + damping * (diagonal * (router - w).square()).sum() / 2
    return value


def minimum(start, *problem, **variant):
    """The minimum closest to the start: one Newton step with autograd's gradient and Hessian, the form is quadratic."""
    start = start.double()
    gradient = torch.autograd.functional.jacobian(lambda w: stated_form(w, *problem, **variant), start)
    hessian = torch.autograd.functional.hessian(lambda w: stated_form(w, *problem, **variant), start)
    size = start.numel()
    step = torch.linalg.pinv(hessian.reshape(size, size), hermitian=True, rtol=1e-11) @ gradient.reshape(-1)
    return start - step.reshape(start.shape)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_equals_the_minimum_of_the_stated_form(variant) -> None:
    features, routers = problem()
    targets = noisy_targets(features, routers)
    start = torch.stack(routers).mean(0)
    solution = solve_router(features, routers, targets, init=start, tol=1e-8, **variant)
    expected = minimum(start, features, routers, targets, **variant)
    assert solution.converged, solution.reason
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE
    plain = solve_router(features, routers, init=start, tol=1e-8, **variant)
    assert (plain.weight - expected).norm() / expected.norm() > 0.02  # the targets are something else


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.get("alpha") != 1.0 and v.get("beta") != 0.0], ids=str)
def test_float32_work_reaches_the_minimum_at_the_default_tolerance(variant) -> None:
    features, routers = problem(seed=11)
    targets = noisy_targets(features, routers)
    solution = solve_router(features, routers, targets, init=routers[0], dtype=torch.float32, **variant)
    expected = minimum(routers[0], features, routers, targets, **variant)
    assert solution.converged, solution.reason
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_sources_own_logits_as_targets_change_nothing(variant) -> None:
    features, routers = problem(dtype=torch.float64, seed=1)
    targets = [x @ w.T for x, w in zip(features, routers, strict=True)]
    solution = solve_router(features, routers, targets, init=routers[0], tol=1e-12, **variant)
    expected = solve_router(features, routers, init=routers[0], tol=1e-12, **variant)
    assert (solution.weight - expected.weight).norm() / expected.weight.norm() < 1e-9


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_newton_reaches_where_autograd_finds_no_slope(activation) -> None:
    features, routers = problem(tokens=(120, 90), hidden=5, experts=4, dtype=torch.float64)
    targets = noisy_targets(features, routers)
    start = torch.stack(routers).mean(0)
    operator = PrecisionOperator(features, routers, targets, activation=activation)
    w, history, _ = minimise_kl(
        features, routers, start, make_preconditioner(operator),
        activation=activation, steps=30, least_gain=1e-13, alpha=1.0, targets=targets,
    )  # fmt: skip

    def exact(w):
        pairs = zip(features, targets, strict=True)
        return sum(routing_kl(z, x @ w.T, activation).mean() for x, z in pairs) / len(features)

    slope = (
        torch.autograd.functional.jacobian(exact, w).norm() / torch.autograd.functional.jacobian(exact, start).norm()
    )
    assert slope < 1e-5  # steps end when they gain 1e-13 of F, about the square of this
    assert history == sorted(history, reverse=True)
    assert history[-1] == pytest.approx(float(exact(w)), rel=1e-12)
    assert mean_kl(features, routers, w, activation, targets=targets) == pytest.approx(history[-1], rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"objective": "kl"}, {"alpha": "auto"}, {"hessian": "identity"}], ids=str)
def test_no_fit_is_worse_than_the_start_on_held_out_tokens(options) -> None:
    """14 noisy tokens for 12 inputs: a fit follows the noise, and the start was fitted to the held-out tokens."""
    features, routers = problem(tokens=(400, 300), seed=3)
    targets = noisy_targets(features, routers)
    held, held_targets = [x[:100] for x in features], [z[:100] for z in targets]
    best = fit_router(held, routers, held_targets, init=routers[0], objective="kl", alpha=1.0).weight
    few, few_targets = [x[100:114] for x in features], [z[100:114] for z in targets]
    solution = fit_router(few, routers, few_targets, init=best, held_out=held, held_out_targets=held_targets, **options)
    assert solution.kept
    assert torch.equal(solution.weight, best)
    reached = mean_kl(held, routers, best, targets=held_targets)
    assert solution.held_out_kl["start"] == pytest.approx(reached) == min(solution.held_out_kl.values())


@pytest.mark.parametrize("options", [{}, {"objective": "kl"}, {"alpha": "auto"}, {"beta": 0.1}], ids=str)
def test_held_out_kl_is_of_the_targets(options) -> None:
    features, routers = problem(tokens=(800, 600), seed=5)
    targets = noisy_targets(features, routers)
    held, held_targets = [x[:200] for x in features], [z[:200] for z in targets]
    fitted, fitted_targets = [x[200:] for x in features], [z[200:] for z in targets]
    start = torch.stack(routers).mean(0)
    solution = fit_router(
        fitted, routers, fitted_targets, init=start, held_out=held, held_out_targets=held_targets, **options
    )
    assert not solution.kept
    name = "fitted" if solution.alpha is None else str(solution.alpha)
    reached = mean_kl(held, routers, solution.weight, targets=held_targets)
    assert solution.held_out_kl[name] == pytest.approx(reached, rel=1e-5)
    assert reached < solution.held_out_kl["start"]
    paper = fit_router(fitted, routers, init=start, held_out=held, **options)
    assert reached < mean_kl(held, routers, paper.weight, targets=held_targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (lambda z: z[:1], "target logits for every domain, found 1 for 2"),
        (lambda z: [z[0], z[1][:-1]], r"domain 1: target logits of shape \(199, 6\), expected .*\(200, 6\)"),
        (lambda z: [z[0].index_fill(0, torch.tensor([3]), float("inf")), z[1]], "domain 0: NaN or Inf in the target"),
    ],
)
def test_bad_targets_are_named(targets, message) -> None:
    features, routers = problem()
    with pytest.raises(ValueError, match=message):
        solve_router(features, routers, targets(noisy_targets(features, routers)))


def test_held_out_tokens_need_targets_as_those_fitted_to() -> None:
    features, routers = problem()
    targets = noisy_targets(features, routers)
    with pytest.raises(ValueError, match="held_out_targets both, or neither"):
        fit_router(features, routers, targets, init=routers[0], held_out=features)
