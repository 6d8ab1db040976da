"""The methods since 2024, against mergekit's or formulas written out in float64."""

import pytest
import torch
from mergekit import merge_methods as mergekit_methods
from mergekit.merge_methods.karcher import karcher_merge_tensors
from mergekit.merge_methods.slerp import slerp
from mergekit.sparsify import magnitude_outliers

from harc.merging.methods.averaging.karcher import inner_products
from harc.merging.methods.averaging.model_stock import ratio
from harc.merging.methods.subspace.iso import own_directions
from harc.merging.methods.subspace.optmerge import denoised
from harc.merging.methods.subspace.wudi import objective
from harc.merging.methods.task_vectors.breadcrumbs import without_tails
from tests.harc.merging.test_merge_tensors import draw, merge_one


def fine_tunes(count: int, *shape: int, step: float = 1e-2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and sources near it in float64, whose steps have something in common."""
    base, common = draw(*shape).double(), draw(*shape, seed=99).double()
    return base, [base + step * (draw(*shape, seed=seed).double() + common) for seed in range(1, count + 1)]


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9, 0.995])
@pytest.mark.parametrize("outliers", [0.0, 0.01, 0.2])
def test_breadcrumbs_keeps_what_mergekit_keeps(density, outliers):
    task_vector = draw(40, 25)
    assert torch.equal(
        without_tails(task_vector, density, outliers), magnitude_outliers(task_vector, density, gamma=outliers)
    )


def test_breadcrumbs_is_mergekits_merge():
    base, sources = draw(30, 20), [draw(30, 20, seed=1), draw(30, 20, seed=2)]
    theirs = mergekit_methods.merge_tensors([base, *sources], "breadcrumbs", base_index=0,
        parameters={"density": 0.6, "gamma": 0.02, "weight": 0.4}, dtype=torch.float32)  # fmt: skip
    ours = merge_one("breadcrumbs", base, sources, [1.0, 1.0], density=0.6, outliers=0.02, scale=0.4)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock_is_mergekits_where_task_vectors_point_together(count):
    base, sources = fine_tunes(count, 12, 7)
    theirs = mergekit_methods.merge_tensors([base, *sources], "model_stock", base_index=0)
    torch.testing.assert_close(merge_one("model_stock", base, sources), theirs, rtol=1e-12, atol=1e-12)
    fused = [torch.stack([one, base + draw(12, 7, seed=n)]) for n, one in enumerate([base, *sources])]
    first = merge_one("model_stock", fused[0], fused[1:])[0]
    torch.testing.assert_close(first, theirs, rtol=1e-12, atol=1e-12)  # a fused tensor's expert is a layer of its own


def test_model_stock_keeps_the_base_where_task_vectors_point_apart():
    base, step = draw(6, 5), draw(6, 5, seed=1)
    assert torch.equal(merge_one("model_stock", base, [base + step, base - step]), base)
    assert torch.equal(ratio([step, torch.zeros_like(step)]), torch.zeros(1, 1))
    torch.testing.assert_close(merge_one("model_stock", base, [base + step, base + step]), base + step)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.3, 0.7], [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("step", [1e-2, 3.0])
def test_karcher_is_mergekits(weights, step):
    _, sources = fine_tunes(len(weights), 12, 7, step=step)
    theirs = karcher_merge_tensors(sources, weights, max_iter=200, tol=1e-9)
    # mergekit takes angles from arccos in float64, good to 1e-8 of a radian.
    torch.testing.assert_close(merge_one("karcher", None, sources, weights), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_karcher_of_two_is_slerp(t):
    first, second = draw(12, 7).double(), draw(12, 7, seed=1).double()
    first, second = first / first.norm(), second / second.norm()
    theirs = slerp(torch.tensor([t], dtype=torch.float64), first[None], second[None])[0]
    torch.testing.assert_close(merge_one("karcher", None, [first, second], [1 - t, t]), theirs, rtol=1e-7, atol=1e-9)


def test_karcher_takes_each_expert_of_a_fused_tensor_alone_and_zeros_have_no_direction():
    sources = [draw(3, 5, 4), draw(3, 5, 4, seed=1)]
    each = torch.stack([merge_one("karcher", None, [part[e] for part in sources], [0.5, 0.5]) for e in range(3)])
    assert torch.equal(merge_one("karcher", None, sources, [0.5, 0.5]), each)
    zero = torch.zeros(5)
    assert torch.equal(merge_one("karcher", None, [zero, zero], [0.5, 0.5]), zero)
    torch.testing.assert_close(merge_one("karcher", None, [zero, torch.ones(5)], [0.5, 0.5]), 0.5 * torch.ones(5))
    gram = inner_products([draw(2000), draw(2000, seed=1)])
    assert float(gram[0, 1]) == pytest.approx(float(draw(2000).double() @ draw(2000, seed=1).double()), rel=1e-12)


@pytest.mark.parametrize(("rescale", "theirs"), [(0.0, "ram"), (0.1, "ramplus_tl")])
@pytest.mark.parametrize("count", [2, 3])
def test_ram_is_mergekits(rescale, theirs, count):
    base = draw(30, 20)
    sources = [base + draw(30, 20, seed=s) * (draw(30, 20, seed=10 + s) > 0.5) for s in range(count)]
    parameters = {"epsilon": 1e-5} | ({"r": 0.1, "alpha": 0.2} if rescale else {})
    expected = mergekit_methods.merge_tensors([base, *sources], theirs, base_index=0, parameters=parameters)
    torch.testing.assert_close(merge_one("ram", base, sources, rescale=rescale), expected)
    assert not torch.equal(expected, base)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (2, 9)])
@pytest.mark.parametrize("count", [2, 3])
def test_tsv_is_the_published_algorithm(shape, count):
    base, sources = fine_tunes(count, *shape)
    rank = max(1, min(shape) // count)
    left, values, right = [], [], []
    for source in sources:
        gram = (source - base) @ (source - base).T  # another way to the singular vectors: eigenvectors, largest first
        squares, vectors = torch.linalg.eigh(gram)
        top = vectors.flip(1)[:, :rank]
        sigma = squares.flip(0)[:rank].sqrt()
        left.append(top), values.append(sigma), right.append((source - base).T @ top / sigma)
    u, v = torch.cat(left, 1), torch.cat(right, 1)
    expected = base + _whitened(u) @ torch.diag(torch.cat(values)) @ _whitened(v).T
    torch.testing.assert_close(merge_one("tsv", base, sources), expected, rtol=1e-8, atol=1e-9)


def _whitened(matrix: torch.Tensor) -> torch.Tensor:
    """M (Mᵀ M)^(−1/2), by eigenvalues; of the wide transpose where M has more columns than rows."""
    if matrix.shape[1] > matrix.shape[0]:
        return _whitened(matrix.T).T
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    return matrix @ vectors @ torch.diag(values.rsqrt()) @ vectors.T


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_iso_c_flattens_the_sums_spectrum(shape):
    base, sources = fine_tunes(3, *shape)
    total = sum(source - base for source in sources)
    nuclear = float(torch.linalg.matrix_norm(total, ord="nuc"))
    expected = base + 1.5 * nuclear / 8 * (_whitened(total) if shape[0] > shape[1] else _whitened(total.T).T)
    torch.testing.assert_close(merge_one("iso_c", base, sources, scale=1.5), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("count", [2, 3])
def test_iso_cts_is_the_published_algorithm(common, count):
    base, sources = fine_tunes(count, 14, 10)
    vectors = [source - base for source in sources]
    own = own_directions(10, count, common)
    shared = 10 - own * count
    u, s, vh = torch.linalg.svd(sum(vectors), full_matrices=False)
    lefts, sigmas, rights = [], [], []
    for vector in vectors:
        projector = torch.eye(14, dtype=torch.float64) - u[:, :shared] @ u[:, :shared].T
        uu, ss, vv = torch.linalg.svd(projector @ vector, full_matrices=False)
        lefts.append(uu[:, :own]), sigmas.append(ss[:own]), rights.append(vv[:own].T)
    left, right = torch.cat([*lefts, u[:, :shared]], 1), torch.cat([*rights, vh[:shared].T], 1)
    sigma = torch.cat([*sigmas, s[:shared]]).mean()
    expected = base + sigma * _whitened(left) @ _whitened(right).T
    torch.testing.assert_close(merge_one("iso_cts", base, sources, common=common), expected, rtol=1e-7, atol=1e-8)
    if common == 1.0:
        torch.testing.assert_close(expected, merge_one("iso_c", base, sources), rtol=1e-8, atol=1e-9)


def test_iso_cts_gives_every_source_as_many_directions():
    assert own_directions(10, 3, 0.8) == 1 and own_directions(1024, 2, 0.8) == 102
    assert own_directions(3, 2, 0.0) == 1 and own_directions(2, 5, 0.8) == 0


def test_optmerge_is_the_published_optimisation():
    base, sources = fine_tunes(2, 10, 14, step=1e-3)
    vectors = torch.stack([source - base for source in sources])
    mean, rank = vectors.mean(0), 5
    cut = lambda m: (lambda u, s, v: u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank])(*torch.linalg.svd(m))  # noqa: E731
    merged = torch.nn.Parameter(vectors.sum(0))
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    losses = []
    for _ in range(300):
        loss = sum((((merged - mean - cut(v - mean)) @ cut(v).T) ** 2).sum() / v.square().sum() for v in vectors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = merge_one("optmerge", base, sources) - base
    torch.testing.assert_close(ours, merged.detach(), rtol=1e-6, atol=1e-9)
    shares = 1 / vectors.square().sum(dim=(1, 2), keepdim=True)
    assert float(objective(vectors.sum(0), *denoised(vectors), shares)) == pytest.approx(losses[0], rel=1e-9)
    assert losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(merge_one("optmerge", base, sources, scale=0.1) - base, 0.1 * ours)


@pytest.mark.parametrize("method", ["tsv", "iso_c", "iso_cts", "optmerge"])
def test_a_batch_of_experts_is_each_expert_alone_and_one_that_did_not_move_stays(method):
    base, sources = fine_tunes(2, 3, 8, 6)
    for source in sources:
        source[1] = base[1]
    together = merge_one(method, base, sources)
    each = [merge_one(method, base[e], [source[e] for source in sources]) for e in range(3)]
    torch.testing.assert_close(together, torch.stack(each))
    assert torch.equal(together[1], base[1])


@pytest.mark.parametrize("method", ["model_stock", "breadcrumbs", "ram", "tsv", "iso_c", "iso_cts", "optmerge"])
def test_sources_that_did_not_move_give_the_base_back(method):
    base = draw(8, 12)
    assert torch.equal(merge_one(method, base, [base, base.clone()], [1.0, 1.0]), base)


def test_karcher_of_equal_sources_is_the_source():
    source = draw(8, 12)
    assert torch.equal(merge_one("karcher", None, [source, source.clone()], [0.4, 0.6]), source)
