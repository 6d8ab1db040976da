"""The matrix-free solve equals a dense float64 solve of the normal equations, for every variant."""

import pytest
import torch

import harc
from harc.solver.operator import PrecisionOperator
from harc.solver.preconditioner import make_preconditioner
from harc.solver.solve import solve, solve_router

TOLERANCE = 1e-5  # relative, on the weight: float32 work, residual of 1e-6 or less


def problem(tokens=(300, 200), hidden=12, experts=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(hidden, hidden, generator=generator) / hidden**0.5
    offset = 0.5 * torch.randn(hidden, generator=generator)
    features = [torch.randn(count, hidden, generator=generator) @ mix + offset for count in tokens]
    shared = torch.randn(experts, hidden, generator=generator)
    routers = [shared + 0.5 * torch.randn(experts, hidden, generator=generator) for _ in tokens]
    return [x.to(dtype) for x in features], [w.to(dtype) for w in routers]


def dense_precision(x, w, alpha, beta, hessian, activation="softmax"):
    """METHOD section 2 and 3 written out: an (E d, E d) matrix, expert by expert."""
    x, w = x.double(), w.double()
    p = (x @ w.T).softmax(1) if activation == "softmax" else (x @ w.T).sigmoid()
    if hessian == "identity":
        curvature = torch.eye(len(w), dtype=torch.float64).expand(len(x), -1, -1)
    elif hessian == "diagonal" or activation == "sigmoid":
        curvature = torch.diag_embed(p * (1 - p))
    else:
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    size = w.numel()
    matrix = torch.einsum("tef,ti,tj->eifj", curvature, x, x).reshape(size, size) / len(x)
    diagonal = torch.diag(matrix.diagonal())
    return alpha * matrix + (1 - alpha) * diagonal if beta is None else matrix + beta * diagonal


def dense_solution(features, routers, start, alpha=0.9, beta=None, hessian="full", activation="softmax"):
    matrices = [dense_precision(x, w, alpha, beta, hessian, activation) for x, w in zip(features, routers, strict=True)]
    residual = sum(m @ (w.double() - start).reshape(-1) for m, w in zip(matrices, routers, strict=True))
    step = torch.linalg.pinv(sum(matrices), hermitian=True, rtol=1e-11) @ residual
    return start + step.reshape(start.shape)


VARIANTS = [
    {"alpha": 0.9},
    {"alpha": 0.5},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"beta": 0.1},
    {"beta": 10.0},
    {"beta": 0.0},
    {"hessian": "diagonal"},
    {"hessian": "diagonal", "alpha": 1.0},
    {"hessian": "identity"},
    {"hessian": "identity", "alpha": 1.0},
    {"hessian": "identity", "beta": 0.3},
    {"activation": "sigmoid"},
]


@pytest.mark.parametrize("preconditioner", ["blocks", "shared", "diagonal", "none"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_equals_dense_solve(variant, preconditioner) -> None:
    features, routers = problem()
    start = torch.stack(routers).mean(0)
    tol = 1e-8  # the error may be the residual times the condition number, 1e4 here where nothing is damped
    solution = solve_router(features, routers, init=start, preconditioner=preconditioner, tol=tol, **variant)
    expected = dense_solution(features, routers, start.double(), **variant)
    assert solution.converged, solution.reason
    assert solution.residual <= tol
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_float64_features_are_solved_in_float64(variant) -> None:
    features, routers = problem(dtype=torch.float64, seed=1)
    start = routers[0]
    solution = solve_router(features, routers, init=start, tol=1e-12, **variant)
    expected = dense_solution(features, routers, start, **variant)
    assert solution.weight.dtype == torch.float64
    assert (solution.weight - expected).norm() / expected.norm() < 1e-9


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.get("alpha") != 1.0 and v.get("beta") != 0.0], ids=str)
def test_float32_work_equals_dense_solve_at_the_default_tolerance(variant) -> None:
    features, routers = problem(seed=11)
    start = torch.stack(routers).mean(0)
    solution = solve_router(features, routers, init=start, dtype=torch.float32, **variant)
    expected = dense_solution(features, routers, start.double(), **variant)
    assert solution.converged, solution.reason
    assert solution.weight.dtype == torch.float32
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


@pytest.mark.parametrize("hessian", ["full", "identity"])
def test_singular_system_gives_the_solution_closest_to_the_start(hessian) -> None:
    """Fewer tokens than dimensions, α = 1: null directions in experts and in features keep the start's value."""
    features, routers = problem(tokens=(5, 4), hidden=16, seed=2)
    start = routers[1]
    solution = solve_router(features, routers, init=start, alpha=1.0, hessian=hessian, tol=1e-7)
    expected = dense_solution(features, routers, start.double(), alpha=1.0, hessian=hessian)
    assert (solution.weight - expected).norm() / expected.norm() < 1e-4


def test_domains_weigh_the_same_whatever_their_size() -> None:
    features, routers = problem(seed=3)
    once = solve_router(features, routers, tol=1e-8)
    doubled = solve_router([features[0].repeat(3, 1), features[1]], routers, tol=1e-8)
    assert (once.weight - doubled.weight).norm() / once.weight.norm() < TOLERANCE


def test_equal_sources_are_returned_unchanged() -> None:
    features, routers = problem(seed=4)
    solution = solve_router(features, [routers[0], routers[0]])
    assert solution.iterations == 0
    assert torch.allclose(solution.weight, routers[0])


def test_three_domains_bf16_features() -> None:
    features, routers = problem(tokens=(200, 300, 250), seed=5)
    features = [x.bfloat16() for x in features]
    solution = solve_router(features, routers, init=routers[2])
    expected = dense_solution(features, routers, routers[2].double())
    assert solution.weight.dtype == torch.float32
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


def test_unused_expert_keeps_its_start() -> None:
    features, routers = problem(seed=6)
    for x, router in zip(features, routers, strict=True):
        x[:, 0] = 1.0
        router[2] = 0.0
        router[2, 0] = -5000.0
    start = routers[0] + 1.0
    solution = solve_router(features, routers, init=start, hessian="diagonal")
    assert solution.converged
    assert torch.equal(solution.weight[2], start[2])


@pytest.mark.parametrize(
    ("alpha", "preconditioner"),  # the singular system of this size takes the others more than 1000 iterations
    [(0.9, "blocks"), (0.9, "shared"), (0.9, "diagonal"), (0.9, "none"), (1.0, "blocks"), (1.0, "shared")],
)
def test_fewer_tokens_than_dimensions_and_an_expert_that_is_never_used(alpha, preconditioner) -> None:
    features, routers = problem(tokens=(9, 7), hidden=16, seed=10)
    for x, router in zip(features, routers, strict=True):
        x[:, 0] = 1.0
        router[2] = 0.0
        router[2, 0] = -5000.0  # its probability underflows to 0
    start = routers[0].clone()
    start[2] += 1.0
    solution = solve_router(features, routers, init=start, alpha=alpha, preconditioner=preconditioner, tol=1e-9)
    expected = dense_solution(features, routers, start.double(), alpha=alpha)
    assert solution.converged, solution.reason
    others = [0, 1, 3, 4, 5]
    assert (solution.weight - expected)[others].norm() / expected[others].norm() < 1e-4


@pytest.mark.parametrize("name", ["blocks", "shared"])
@pytest.mark.parametrize("variant", [{"alpha": 0.9}, {"alpha": 1.0}, {"activation": "sigmoid"}], ids=str)
def test_factors_of_few_sampled_tokens_keep_the_answer(variant, name) -> None:
    features, routers = problem(tokens=(3000, 2000, 1000), hidden=16, seed=12)
    start = torch.stack(routers).mean(0).double()
    operator = PrecisionOperator(features, routers, **variant)
    approximate = make_preconditioner(operator, name, sampled=40)
    solution = solve(operator, start, approximate, tol=1e-9)
    expected = dense_solution(features, routers, start, **variant)
    assert solution.converged, solution.reason
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


def test_residual_history_and_iteration_limit(caplog) -> None:
    features, routers = problem(seed=7)
    solution = solve_router(features, routers, preconditioner="none", max_iter=3)
    assert not solution.converged
    assert solution.iterations == 3
    assert len(solution.residuals) == 4
    assert solution.reason == "iteration limit"
    assert solution.residual == solution.residuals[-1] > 1e-6
    assert "iteration limit" in caplog.text


def test_a_tolerance_below_rounding_is_said_to_stagnate() -> None:
    features, routers = problem(seed=8)
    solution = solve_router(features, routers, tol=1e-20)
    assert not solution.converged
    assert solution.reason != "converged"
    assert solution.residual < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: (x[:1], w), "a router for every domain"),
        (lambda x, w: ([x[0], x[1][:0]], w), "domain 1: no tokens"),
        (lambda x, w: (x, [w[0], w[1][:3]]), "domain 1: router of shape"),
        (lambda x, w: ([x[0][:, :5], x[1]], w), "domain 0: features of shape"),
        (lambda x, w: ([x[0], x[1].index_fill(0, torch.tensor([17]), float("nan"))], w), "domain 1.*token 17"),
        (lambda x, w: (x, [w[0], w[1] * float("inf")]), "domain 1: NaN or Inf in the source router"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    features, routers = change(*problem())
    with pytest.raises(ValueError, match=message):
        harc.solve_router(features, routers)


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"beta": -1}, {"hessian": "half"}, {"preconditioner": "magic"}])
def test_bad_option_is_named(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        harc.solve_router(*problem(), **options)


def test_several_alphas_share_statistics() -> None:
    features, routers = problem(seed=9)
    operator = PrecisionOperator(features, routers, alpha=0.9)
    other = operator.regularised(0.3)
    v = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fresh = PrecisionOperator(features, routers, alpha=0.3)
    assert torch.allclose(other.product(v), fresh.product(v))
    assert other.domains[0].curvature is operator.domains[0].curvature
    assert operator.coupling == 0.9


@pytest.mark.parametrize("variant", [{"alpha": 0.9}, {"beta": 0.1}, {"activation": "sigmoid"}], ids=str)
def test_bf16_products_are_refined_to_the_same_answer(variant) -> None:
    """On a GPU they are the default for bf16 features; rounding is the same here, where they are only slower."""
    features, routers = problem(tokens=(3000, 2000), hidden=24, seed=16, dtype=torch.bfloat16)
    start = torch.stack(routers).double().mean(0)
    exact = PrecisionOperator(features, routers, dtype=torch.float32, **variant)
    fast = PrecisionOperator(features, routers, dtype=torch.float32, fast=True, **variant)
    assert fast.fast and not exact.fast
    assert not fast.regularised(1.0).fast or not fast.coupled  # rounding would leave the space that Λ sees
    v = torch.randn(start.shape, generator=torch.Generator().manual_seed(16))
    error = float((fast.product(v) - exact.product(v)).norm() / exact.product(v).norm())
    assert 1e-5 < error < 1e-2
    solution = solve(fast, start, make_preconditioner(fast), tol=1e-6)
    expected = dense_solution(features, routers, start, **variant)
    assert solution.converged and solution.residual <= 1e-6
    assert (solution.weight - expected).norm() / expected.norm() < TOLERANCE


def test_a_solve_that_bf16_products_cannot_finish_ends_in_the_working_precision() -> None:
    features, routers = problem(tokens=(400, 300), hidden=8, seed=17, dtype=torch.bfloat16)

    class Rounded(PrecisionOperator):
        def product(self, v):
            return -super().product(v) if self.fast else super().product(v)  # no step along any direction

    operator = Rounded(features, routers, dtype=torch.float32, fast=True)
    solution = solve(operator, torch.stack(routers).double().mean(0), make_preconditioner(operator))
    assert solution.converged and solution.residual <= 1e-6
    assert PrecisionOperator(features, routers, fast=True).fast is False  # a small problem is float64
