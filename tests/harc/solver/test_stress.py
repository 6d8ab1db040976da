"""What real models bring: the residual that is reported is the true one, in float64 and written out on its own.

Each problem is solved in float32, the precision of large ones, and in float64. No preconditioner may need more
iterations than the diagonal does, and one that fails is left for it.
"""

import pytest
import torch

from harc.solver.operator import PrecisionOperator
from harc.solver.preconditioner import make_preconditioner
from harc.solver.solve import solve
from tests.harc.solver.test_solver import problem


def scaled(features, routers, largest):
    """Routers whose logits reach ± `largest`."""
    reach = max(float((x.double() @ w.double().T).abs().max()) for x, w in zip(features, routers, strict=True))
    return features, [w * (largest / reach) for w in routers]


def large_logits():
    return scaled(*problem(seed=20), 200.0)


def all_saturated():
    """Every token's largest p is 1 − 1e-9 or so: 1 − p is nothing in float32."""
    features, routers = problem(tokens=(200, 150), hidden=8, experts=4, seed=21)
    features = [x.sign() + 0.01 * x for x in features]
    for x in features:
        x[:, 0] = 1.0
        x[:, 1] = 1.0 - 2.0 * (torch.arange(len(x)) % 2)
    for w in routers:
        w *= 0.2
        w[:, 1] += torch.tensor([20.0, -20.0, 0.0, 0.0])
    return features, routers


def silent_experts():
    """Two experts that no token reaches: p = 1e-26, and 0."""
    features, routers = problem(seed=22)
    for x, w in zip(features, routers, strict=True):
        x[:, 0] = 1.0
        w[1, 0] -= 60.0
        w[4] = 0.0
        w[4, 0] = -5000.0
    return features, routers


def one_expert_takes_all():
    features, routers = problem(seed=23)
    for x, w in zip(features, routers, strict=True):
        x[:, 0] = 1.0
        w[3, 0] += 30.0
    return features, routers


def constant_column():
    features, routers = problem(seed=24)
    for x in features:
        x[:, 5] = 7.0
    return features, routers


def zero_column():
    features, routers = problem(seed=25)
    for x in features:
        x[:, 5] = 0.0
    return features, routers


def tiny_column():
    features, routers = problem(seed=26)
    for x in features:
        x[:, 5] *= 1e-8
    return features, routers


def duplicated_tokens():
    features, routers = problem(tokens=(20, 30), seed=27)
    return [x.repeat(20, 1) for x in features], routers


def few_tokens():
    return problem(tokens=(7, 5), hidden=24, experts=6, seed=28)


def one_domain():
    return problem(tokens=(400,), seed=29)


def five_domains():
    return problem(tokens=(100, 80, 90, 120, 110), seed=30)


def unequal_domains():
    return problem(tokens=(2000, 9), seed=31)


def outliers():
    """bf16 features with two dimensions of 100 times the median and a large mean, as real hidden states have."""
    features, routers = problem(tokens=(900, 700), hidden=24, experts=8, seed=32)
    for x in features:
        x[:, 3] = 100 * x.abs().median() * (1 + 0.1 * x[:, 3])
        x[:, 7] *= 100
    for w in routers:
        w[:, [3, 7]] *= 0.01
    return [x.bfloat16() for x in features], routers


def two_experts():
    return problem(experts=2, seed=33)


def many_experts():
    return problem(tokens=(150, 120), hidden=6, experts=256, seed=34)


PROBLEMS = [
    large_logits, all_saturated, silent_experts, one_expert_takes_all, constant_column, zero_column, tiny_column,
    duplicated_tokens, few_tokens, one_domain, five_domains, unequal_domains, outliers, two_experts, many_experts,
]  # fmt: skip
DAMPINGS = [{"alpha": 0.0}, {"alpha": 0.9}, {"alpha": 1.0}, {"beta": 1e-6}, {"beta": 1.0}, {"beta": 1e3}]
CASES = [(make, damping) for make in PROBLEMS for damping in DAMPINGS if make is not many_experts or "alpha" in damping]


def true_residual(features, routers, weight, alpha=0.9, beta=None):
    """‖b − Λ̃ W‖ / ‖b‖ of METHOD sections 2 to 4, token by token in float64."""
    coupling, damping = (alpha, 1 - alpha) if beta is None else (1.0, beta)
    left = torch.zeros_like(weight, dtype=torch.float64)
    rhs = left.clone()
    for x, router in zip(features, routers, strict=True):
        x, router = x.double(), router.double()
        logits = x @ router.T
        p = logits.softmax(1)
        others = p @ (1 - torch.eye(p.shape[1], dtype=p.dtype))  # 1 − p, without the difference
        diagonal = (p * others).T @ x.square() / len(x)
        for out, v in ((left, router - weight.double()), (rhs, router)):
            z = x @ v.T
            z = z - z.gather(1, logits.argmax(1, keepdim=True))  # H 1 = 0; without it p = 1 − 1e-9 loses digits
            bent = p * z - p * (p * z).sum(1, keepdim=True)
            out += coupling * bent.T @ x / len(x) + damping * diagonal * v
    return float(left.norm() / rhs.norm())


def solved(make, damping, dtype, preconditioner="auto", **options):
    features, routers = make()
    start = torch.stack(routers).mean(0).double() + 0.1
    operator = PrecisionOperator(features, routers, dtype=dtype, **damping)
    approximate = make_preconditioner(operator, preconditioner) if isinstance(preconditioner, str) else preconditioner
    solution = solve(operator, start, approximate, **options)
    return solution, true_residual(features, routers, solution.weight, **damping)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("make", "damping"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_reported_residual_is_the_true_one(make, damping, dtype) -> None:
    solution, true = solved(make, damping, dtype)
    # float32 rounds p, features and products, each by 1e-7 at most: of their sums that is 1e-6 where routers move far
    assert abs(true - solution.residual) <= 0.05 * solution.residual + (1e-6 if dtype == torch.float32 else 1e-12)
    assert solution.converged, (solution.reason, solution.residual)
    assert torch.isfinite(solution.weight).all()


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_a_limit_that_is_reached_is_said(make, caplog) -> None:
    solution, true = solved(make, {"alpha": 0.9}, torch.float64, "none", tol=1e-9, max_iter=2)
    assert not solution.converged and solution.reason == "iteration limit" and solution.iterations == 2
    assert solution.residual == pytest.approx(true, rel=1e-6)
    assert "iteration limit" in caplog.text


@pytest.mark.parametrize("name", ["blocks", "shared"])
@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_no_preconditioner_hurts(make, name) -> None:
    plain, _ = solved(make, {"alpha": 0.9}, torch.float64, "diagonal")
    solution, _ = solved(make, {"alpha": 0.9}, torch.float64, name)
    assert solution.preconditioner == name
    assert solution.iterations <= plain.iterations + 3  # where the diagonal needs a handful


class Wrong:
    """A preconditioner that does what it is told to each residual."""

    name = "wrong"

    def __init__(self, act):
        self.act = act

    def __call__(self, r):
        return self.act(r)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "act",
    [lambda r: -r, lambda r: r * float("nan"), lambda r: r.roll(1, 0), lambda r: torch.zeros_like(r)],
    ids=["negative", "nan", "not symmetric", "nothing"],
)
def test_a_preconditioner_that_fails_is_left_for_the_diagonal(act, dtype, caplog) -> None:
    solution, true = solved(outliers, {"alpha": 0.9}, dtype, Wrong(act))
    assert solution.converged and true <= 2e-6
    assert solution.preconditioner == "wrong, then diagonal"
    assert "wrong preconditioner" in caplog.text
    plain, _ = solved(outliers, {"alpha": 0.9}, dtype, "diagonal")
    assert solution.iterations <= 2 * plain.iterations


def test_an_answer_that_rounding_would_spoil_is_kept() -> None:
    """α = 1 and a column a hundred million times smaller: the solution closest to the start is none in rounded sums."""
    solution, true = solved(tiny_column, {"alpha": 1.0}, torch.float64)
    assert solution.converged and true <= 1e-6
