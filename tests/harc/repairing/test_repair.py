"""Repair layer by layer equals a plain re-implementation with whole models in memory and dense least squares."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import CheckpointError, open_checkpoint
from harc.models.routers import find_routers
from harc.repairing.settings import PARTS, RIDGES
from harc.solver.fit import fit_router
from tests.harc.repairing.oracle import load, repaired
from tests.harc.tiny_models import EVERY_KIND, family, random_model, text

MAPS = ("experts", "attention")
DATA = [text(count=9, seed=0), text(count=6, seed=1)]


def two_layers(kind, folder, **options):
    return family(kind, folder, num_hidden_layers=2, **options)


def repair(paths, data, out, **options):
    options = {"min_tokens": 1, "progress": False, **options}
    return harc.repair(paths[0], paths[1:], data, out=out, **options)


def newton(features, routers, targets, merged):
    return fit_router(features, routers, targets, init=merged, objective="kl").weight


@pytest.mark.parametrize("drift", [0.0, 0.7])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_map_equals_dense_least_squares(kind, drift, tmp_path) -> None:
    paths = two_layers(kind, tmp_path, dtype=torch.float64)
    report = repair(paths, DATA, tmp_path / "out", parts=MAPS, ridge=0.1, drift=drift, tokens_per_batch=70)
    expected = repaired(paths, DATA, MAPS, 0.1, drift).state_dict()
    for name, found in load(tmp_path / "out").state_dict().items():
        # Norms and routers compute in float32 whatever the model does; batches are padded differently.
        assert (found - expected[name]).norm() <= 1e-6 * expected[name].norm(), name
    assert all(one.error_after < one.error_before for layer in report.layers for one in layer.maps)


@pytest.mark.parametrize("parts", [("router", "experts"), ("router", "attention"), ("router",)])
def test_chosen_parts_alone_change(parts, tmp_path) -> None:
    paths = two_layers("olmoe", tmp_path, dtype=torch.float64)
    repair(paths, DATA, tmp_path / "out", parts=parts, ridge=0.1)
    before = load(paths[0]).state_dict()
    words = {"router": ["gate.weight"], "experts": ["experts."], "attention": ["_proj.weight"]}
    changed = {name for name, found in load(tmp_path / "out").state_dict().items() if not found.equal(before[name])}
    assert changed == {name for name in before if any(word in name for part in parts for word in words[part])}


def test_routers_are_fitted_to_what_the_sources_route_on_their_own_inputs(tmp_path) -> None:
    paths = two_layers("olmoe", tmp_path, dtype=torch.float64)
    report = repair(paths, DATA, tmp_path / "out", ridge=0.1)
    expected = repaired(paths, DATA, MAPS, 0.1, 1.0, newton)
    for name, found in load(tmp_path / "out").state_dict().items():
        # The solves end at a residual of 1e-6.
        assert (found - expected.state_dict()[name]).norm() <= 1e-4 * found.norm(), name
    assert all(layer.router.kl_after < layer.router.kl_before for layer in report.layers)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_merged_model_equal_to_its_sources_comes_back_unchanged(kind, tmp_path) -> None:
    random_model(kind, num_hidden_layers=2).save_pretrained(tmp_path / "one")
    one = tmp_path / "one"
    parts = MAPS if kind == "gpt_oss" else PARTS  # its router has a bias
    for ridge in (0.1, "auto"):
        report = repair([one, one, one], DATA, tmp_path / f"out-{ridge}", ridge=ridge, parts=parts)
        before, after = open_checkpoint(one), open_checkpoint(tmp_path / f"out-{ridge}")
        routers = {router.checkpoint_key for router in find_routers(random_model(kind, num_hidden_layers=2)).values()}
        for name in before:
            # Every map's error is zero; a router's gradient is rounding.
            tolerance = 1e-5 if name in routers else 0
            assert (after.read(name) - before.read(name)).norm() <= tolerance * before.read(name).norm(), name
        assert all(one.kept == one.maps for layer in report.layers for one in layer.maps)


def test_norms_embeddings_and_head_are_bit_identical_and_their_shards_links(tmp_path) -> None:
    paths = family("olmoe", tmp_path, dtype=torch.bfloat16)
    repair(paths, DATA, tmp_path / "out")
    before, after = open_checkpoint(paths[0]), open_checkpoint(tmp_path / "out")
    assert list(before) == list(after)
    kept = {name for name in before if before.read(name).equal(after.read(name))}
    assert kept == {name for name in before if "norm" in name or "embed" in name or "lm_head" in name}
    assert {info.dtype for info in after.tensors.values()} == {torch.bfloat16}
    for file in before.files:
        touched = any(before.tensors[name].file == file for name in before if name not in kept)
        assert file.samefile(tmp_path / "out" / file.name) != touched
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_auto_never_makes_a_map_worse_on_held_out_text(tmp_path) -> None:
    paths = two_layers("qwen3_moe", tmp_path)
    report = repair(paths, [text(40, seed=0), text(40, seed=1)], tmp_path / "out", ridge="auto", alpha="auto")
    records = [one for layer in report.layers for one in layer.maps]
    assert all(one.error_after <= one.error_before for one in records)
    assert {float(ridge) for one in records for ridge in one.ridges} <= set(RIDGES)
    assert all(sum(one.ridges.values()) + one.kept == one.maps for one in records)
    assert any(one.kept for one in records)
    assert all(layer.router.kl_after <= layer.router.kl_before for layer in report.layers)


def test_a_memory_budget_gives_the_same_tensors(tmp_path, monkeypatch) -> None:
    paths = two_layers("olmoe", tmp_path)
    with pytest.raises(ValueError, match=r"memory_budget_gb is 1e-07: .* one layer's weights of 3 models") as refused:
        repair(paths, DATA, tmp_path / "out", memory_budget_gb=1e-7)
    least = float(re.search(r"needs at least ([\d.e-]+)", str(refused.value))[1]) * 1.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "source0", "source1"]
    mapped = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **options: mapped.append(1) or from_file(*args, **options))
    repair(paths, DATA, tmp_path / "memory")
    assert not mapped
    repair(paths, DATA, tmp_path / "mapped", memory_budget_gb=least)
    assert mapped
    memory, files = (open_checkpoint(tmp_path / name) for name in ("memory", "mapped"))
    assert all(torch.equal(memory.read(name), files.read(name)) for name in memory)


def test_what_cannot_be_repaired_is_refused_before_any_work(tmp_path) -> None:
    paths = family("olmoe", tmp_path, num_hidden_layers=1)
    random_model("olmoe", num_hidden_layers=1, intermediate_size=16).save_pretrained(tmp_path / "other")
    for options, message in (
        ({"parts": ("routers",)}, "parts=routers: expected one of router, experts, attention"),
        ({"parts": ()}, r"parts=\[\]: expected some of"),
        ({"ridge": 0.0}, "ridge=0.0: expected a number from 1e-6, or auto"),
        ({"drift": 2.0}, "drift=2.0"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16: .* stored in torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            repair(paths, DATA, tmp_path / "out", **options)
    with pytest.raises(CheckpointError, match="has shape"):
        repair([paths[0], paths[1], tmp_path / "other"], DATA, tmp_path / "out")
    assert not (tmp_path / "out").exists()
