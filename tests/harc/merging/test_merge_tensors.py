"""The tensor functions, against mergekit's, a dense least-squares solve and autograd."""

import pytest
import torch
from mergekit.merge_methods.generalized_task_arithmetic import get_mask
from mergekit.merge_methods.sce import sce_mask
from mergekit.sparsify import magnitude

from harc.merging.methods.averaging.average import weighted_mean
from harc.merging.methods.data_driven.fisher import fisher_mean
from harc.merging.methods.data_driven.regmean import regmean
from harc.merging.methods.subspace.wudi import Gradient, inverse_squares, objective
from harc.merging.methods.task_vectors.dare import drop_and_rescale
from harc.merging.methods.task_vectors.della import keep_probability
from harc.merging.methods.task_vectors.sce import select
from harc.merging.methods.task_vectors.ties import merge_agreeing, trim
from harc.merging.normal_equations import damp
from harc.merging.registry import find_method


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).float()


def merge_one(method: str, base, sources, weights=(), *, seed: int = 0, **settings) -> torch.Tensor:
    """One tensor merged by a method, whose settings are its defaults unless given."""
    found = find_method(method)
    drawn = {"seed": seed} if found.random else {}
    return found.function(base, sources, weights, found.configure(settings), **drawn)


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(40, 25), (1000,), (5, 10, 20)])
def test_trim_keeps_what_mergekit_keeps(shape, density):
    task_vector = draw(*shape)
    assert torch.equal(trim(task_vector, density), magnitude(task_vector, density))


@pytest.mark.parametrize("density", [0.1, 0.2, 0.7])
def test_trim_keeps_as_many_as_mergekit_when_magnitudes_are_equal(density):
    task_vector = (draw(64, 64) * 3).round() / 64  # few distinct values, as the difference of two bf16 weights has
    ours, theirs = trim(task_vector, density), magnitude(task_vector, density)
    assert torch.equal(ours.abs().flatten().sort().values, theirs.abs().flatten().sort().values)
    stable = task_vector.abs().reshape(-1).sort(descending=True, stable=True).indices[: int(density * 4096)]
    assert torch.equal(
        (ours.reshape(-1) != 0).nonzero()[:, 0], stable[task_vector.reshape(-1)[stable] != 0].sort().values
    )


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_sign_election_is_mergekits(models, normalize):
    task_vectors = torch.stack([trim(draw(30, 20, seed=seed), 0.4) for seed in range(models)])
    weights = torch.tensor([0.6, 0.4, 0.3][:models]).view(-1, 1, 1)
    mask = get_mask(task_vectors * weights, "sum")
    expected = (task_vectors * weights * mask).sum(dim=0)
    if normalize:
        divisor = (weights * mask).sum(dim=0)
        expected = expected / divisor.masked_fill(divisor == 0, 1)
    merged = merge_agreeing(list(task_vectors), weights.flatten().tolist(), normalize=normalize)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.5])
def test_sce_selects_what_mergekit_selects(density):
    task_vectors = torch.stack([draw(30, 20, seed=seed) for seed in range(3)])
    task_vectors[:, :5] = task_vectors[0, :5]  # no variance here
    assert torch.equal(select(list(task_vectors), density), sce_mask(task_vectors, density).bool())


def test_sce_is_mergekits_merge():
    from mergekit.merge_methods.sce import sce_weight

    base = draw(30, 20)
    sources = [base + draw(30, 20, seed=seed) for seed in (1, 2, 3)]
    task_vectors = torch.stack([source - base for source in sources])
    task_vectors = task_vectors * sce_mask(task_vectors, 0.3)
    weighted = sce_weight(task_vectors).view(-1, 1, 1) * get_mask(task_vectors, "sum")
    expected = base + (task_vectors * weighted).sum(0) / weighted.sum(0).clamp(min=1e-6)
    torch.testing.assert_close(merge_one("sce", base, sources, [1, 1, 1], density=0.3), expected)


def test_sce_weighs_small_task_vectors_too():
    base = torch.zeros(200)  # energies of 1e-8, as of real fine-tunes: 9 times as much in the first
    merged = merge_one("sce", base, [3e-4 * torch.ones(200), 1e-4 * torch.ones(200)], [1, 1], density=1.0)
    torch.testing.assert_close(merged, torch.full((200,), 2.8e-4))


def test_dare_drops_at_its_rate_and_keeps_the_expectation():
    task_vector = draw(100, 100)
    thinned = drop_and_rescale(task_vector, 0.4, torch.Generator().manual_seed(1))
    kept = thinned != 0
    assert abs(kept.float().mean() - 0.4) < 0.02
    torch.testing.assert_close(thinned[kept], task_vector[kept] / 0.4)
    mean = torch.stack([drop_and_rescale(task_vector, 0.4, torch.Generator().manual_seed(s)) for s in range(200)]).mean(
        0
    )
    assert (mean - task_vector).norm() / task_vector.norm() < 0.1


def test_dare_without_drops_is_the_consensus_merge_and_linear_is_task_arithmetic():
    base, sources, weights = draw(9, 7), [draw(9, 7, seed=1), draw(9, 7, seed=2)], [0.6, 0.4]
    torch.testing.assert_close(
        merge_one("dare", base, sources, weights, density=1.0),
        merge_one("ties", base, sources, weights, density=1, normalize=False),
    )
    linear = merge_one("dare", base, sources, weights, density=1.0, linear=True)
    torch.testing.assert_close(linear, merge_one("task_arithmetic", base, sources, weights, scale=1.0))
    assert torch.equal(
        merge_one("dare", base, sources, weights, seed=3), merge_one("dare", base, sources, weights, seed=3)
    )
    assert not torch.equal(
        merge_one("dare", base, sources, weights, seed=3), merge_one("dare", base, sources, weights, seed=4)
    )


def test_dare_as_published_divides_by_the_weights_that_agree():
    base = torch.zeros(4)
    first, second = torch.tensor([1.0, 2.0, -1.0, 0.0]), torch.tensor([3.0, -1.0, -2.0, 5.0])
    settings = {"density": 1.0, **find_method("dare").published()}
    found = merge_one("dare", base, [first, second], [0.6, 0.4], **settings)
    # The elected signs are those of 0.6 first + 0.4 second: +, +, −, +.
    expected = torch.tensor([0.6 * 1 + 0.4 * 3, 2.0, -(0.6 * 1 + 0.4 * 2), 5.0])
    torch.testing.assert_close(found, expected)
    three = [merge_one("dare", base, [first, second, first], [weight] * 3, **settings) for weight in (0.3333, 1 / 3)]
    torch.testing.assert_close(three[0], three[1])  # the authors' 0.3333 are a third


@pytest.mark.parametrize("shape", [(6, 50), (50,)])
def test_della_keeps_with_mergekits_probabilities(shape, monkeypatch):
    from mergekit import sparsify

    seen = []
    monkeypatch.setattr(sparsify.torch, "bernoulli", lambda p: seen.append(p) or torch.ones_like(p))
    task_vector = draw(*shape)
    sparsify.della_magprune(task_vector, density=0.4, epsilon=0.15)
    torch.testing.assert_close(keep_probability(task_vector, 0.4, 0.15), seen[0].view(shape))


def test_della_keeps_the_expectation():
    base, source = draw(20, 40), draw(20, 40, seed=1)
    merged = torch.stack([merge_one("della", base, [source], [1.0], seed=seed) for seed in range(500)]).mean(dim=0)
    assert (merged - source).norm() / (source - base).norm() < 0.12


def test_average_and_task_arithmetic_are_what_they_say():
    base, first, second = draw(5, 4), draw(5, 4, seed=1), draw(5, 4, seed=2)
    torch.testing.assert_close(weighted_mean([first, second], [3.0, 1.0]), 0.75 * first + 0.25 * second)
    merged = merge_one("task_arithmetic", base, [first, second], [1.0, 2.0], scale=0.3)
    torch.testing.assert_close(merged, base + 0.3 * (first - base) + 0.6 * (second - base))


@pytest.mark.parametrize("shape", [(12, 30), (3, 100), (4, 16, 16)])
def test_wudi_gradient_is_autograds(shape):
    task_vectors = draw(2, *shape)
    merged = draw(*shape, seed=9).requires_grad_()
    problem = (task_vectors, task_vectors, inverse_squares(task_vectors))
    objective(merged, *problem).sum().backward()
    torch.testing.assert_close(Gradient(*problem)(merged.detach()), merged.grad, rtol=1e-4, atol=1e-5)


def test_wudi_is_the_published_optimisation():
    base, sources = draw(10, 14), [draw(10, 14) + 1e-3 * draw(10, 14, seed=seed) for seed in (1, 2)]
    vectors = torch.stack([source - base for source in sources])
    merged = torch.nn.Parameter(vectors.sum(dim=0))
    optimizer = torch.optim.Adam([merged], lr=2e-5)
    norms = vectors.reshape(2, -1).norm(dim=-1).square()
    losses = []
    for _ in range(300):
        product = (merged - vectors) @ vectors.transpose(1, 2)
        loss = (product.square() / norms[:, None, None]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = merge_one("wudi", base, sources) - base
    torch.testing.assert_close(ours, merged.detach(), rtol=1e-3, atol=1e-6)
    problem = (vectors, vectors, inverse_squares(vectors))
    reached = float(objective(ours, *problem))
    assert losses[0] == pytest.approx(float(objective(vectors.sum(dim=0), *problem)), rel=1e-4)
    assert reached < 0.5 * losses[0]


def test_wudi_of_a_batch_is_wudi_of_each_and_idle_task_vectors_do_no_harm():
    base, sources = draw(3, 6, 8), [draw(3, 6, 8) + 1e-3 * draw(3, 6, 8, seed=seed) for seed in (1, 2)]
    sources[0][1] = base[1]
    sources[1][1] = base[1]
    together = merge_one("wudi", base, sources, steps=50)
    each = [merge_one("wudi", base[i], [source[i] for source in sources], steps=50) for i in range(3)]
    torch.testing.assert_close(together, torch.stack(each))
    assert torch.equal(together[1], base[1])


def test_regmean_is_dense_least_squares():
    inputs = [draw(200, 15, seed=1).double(), draw(90, 15, seed=2).double() * 2]
    sources = [draw(7, 15, seed=3).double(), draw(7, 15, seed=4).double()]
    stacked = torch.cat([x / len(x) ** 0.5 for x in inputs])
    targets = torch.cat([x @ w.mT / len(x) ** 0.5 for x, w in zip(inputs, sources, strict=True)])
    expected = torch.linalg.lstsq(stacked, targets).solution.mT
    grams = [x.mT @ x / len(x) for x in inputs]
    torch.testing.assert_close(regmean(sources, grams, [1, 1], damping=1.0, ridge=0), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(regmean(sources, grams, [1, 1], damping=1.0), expected, rtol=1e-4, atol=1e-5)


def test_regmean_damping_shrinks_off_diagonals():
    grams = [x.mT @ x for x in (draw(50, 6, seed=1), draw(50, 6, seed=2))]
    sources = [draw(3, 6, seed=3), draw(3, 6, seed=4)]
    damped = [0.9 * gram + 0.1 * torch.diag(gram.diag()) for gram in grams]
    torch.testing.assert_close(damp(grams[0], 0.9), damped[0])
    expected = sum(w @ g for w, g in zip(sources, damped, strict=True)) @ sum(damped).inverse()
    torch.testing.assert_close(regmean(sources, grams, [1, 1], damping=0.9), expected, rtol=1e-4, atol=1e-5)


def test_regmean_without_data_is_the_mean_and_idle_inputs_get_it():
    sources, weights = [draw(3, 6, seed=3), draw(3, 6, seed=4)], [3.0, 1.0]
    mean = weighted_mean(sources, weights)
    torch.testing.assert_close(regmean(sources, [torch.zeros(6, 6)] * 2, weights, damping=0.9), mean)
    x = draw(50, 6, seed=1)
    x[:, 2] = 0
    merged = regmean(sources, [x.mT @ x, torch.zeros(6, 6)], weights, damping=0.9)
    torch.testing.assert_close(merged[:, 2], mean[:, 2])
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(merged[:, others], sources[0][:, others], rtol=1e-3, atol=1e-3)
    few = draw(2, 6, seed=5)  # fewer tokens than inputs, undamped: singular
    assert regmean(sources, [few.mT @ few] * 2, weights, damping=1.0).isfinite().all()


def test_fisher_weighs_by_information():
    sources, information = [draw(4, 3, seed=1), draw(4, 3, seed=2)], [draw(4, 3, seed=3) ** 2, draw(4, 3, seed=4) ** 2]
    information[0][0] = information[1][0] = 0
    merged = fisher_mean(sources, information, [2.0, 1.0], floor=1e-6, smoothing=0.0)
    expected = (2 * information[0] * sources[0] + information[1] * sources[1]) / (2 * information[0] + information[1])
    torch.testing.assert_close(merged[1:], expected[1:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(merged[0], (2 * sources[0][0] + sources[1][0]) / 3)
    nothing = [torch.zeros(4, 3)] * 2
    torch.testing.assert_close(
        fisher_mean(sources, nothing, [1.0, 1.0], floor=1e-6, smoothing=0.0), (sources[0] + sources[1]) / 2
    )


def test_fisher_as_published_adds_its_smoothing_and_no_floor():
    sources, information = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])], [torch.tensor([3e-10, 0.0])] * 2
    information[1] = torch.tensor([0.0, 0.0])
    found = fisher_mean(sources, information, [0.5, 0.5], floor=0.0, smoothing=1e-10)
    torch.testing.assert_close(found, torch.tensor([(4 * 1 + 1 * 3) / 5, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_sources_give_themselves_back(dtype):
    base, source = draw(8, 12, dtype=dtype), draw(8, 12, seed=1, dtype=dtype)
    sources, x = [source, source.clone(), source.clone()], draw(30, 12, seed=2)
    assert torch.equal(weighted_mean(sources, [0.2, 0.5, 0.3]), source)
    information = [draw(8, 12, seed=s) ** 2 for s in (3, 4, 5)]
    assert torch.equal(fisher_mean(sources, information, [0.2, 0.5, 0.3], floor=1e-6, smoothing=0.0), source)
    torch.testing.assert_close(regmean(sources, [x.mT @ x] * 3, [1, 1, 1], damping=0.9), source)
    torch.testing.assert_close(merge_one("ties", base, sources, [0.2, 0.5, 0.3], density=1.0), source)
    for method in ("ties", "dare", "della", "sce", "wudi", "task_arithmetic"):
        assert torch.equal(merge_one(method, base, [base, base], [0.6, 0.4]), base), method
