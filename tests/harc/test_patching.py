"""Router patches: exactly the calibrated model, on the merge that they fit, and on nothing else."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import harc
from harc import patching
from harc.checkpoint import CheckpointError, open_checkpoint
from harc.checkpoint.digest import model_digest, tensor_digests
from tests.harc.tiny_models import family


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A merge, and the same with a source's routers, in several shards."""
    folder = tmp_path_factory.mktemp("patching")
    merged, source, _ = family("olmoe", folder)
    harc.swap_routers(merged, source, folder / "calibrated")
    harc.save_patch(folder / "calibrated", merged, folder / "routers.patch.safetensors")
    return merged, folder / "calibrated", folder / "routers.patch.safetensors"


@pytest.fixture
def own(models, tmp_path):
    """A copy of the merge that a test may change."""
    shutil.copytree(models[0], tmp_path / "model")
    return tmp_path / "model"


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one, other):
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_patch_holds_the_changed_tensors_alone(models):
    merged, calibrated, patch = models
    before, after = tensors(merged), tensors(calibrated)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    held = load_file(patch)
    assert held.keys() == changed and len(changed) == 3
    assert all(torch.equal(held[name], after[name]) for name in held)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_merge_patched_is_the_calibrated_model_to_the_bit(models, own, tmp_path, in_place):
    (own / "notes.txt").write_text("mine")
    out = harc.apply_patch(models[2], own, None if in_place else tmp_path / "out")
    assert same(out, models[1]) and out == (own if in_place else tmp_path / "out")
    assert in_place or same(own, models[0])
    assert (own / "notes.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_in_place_leaves_a_model_alone_that_shares_its_files(models, own, tmp_path):
    shutil.copytree(own, tmp_path / "linked", copy_function=os.link)
    harc.apply_patch(models[2], own)
    assert same(tmp_path / "linked", models[0]) and same(own, models[1])


def test_the_digest_is_that_of_names_dtypes_shapes_and_bytes(models):
    checkpoint = open_checkpoint(models[0])
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors(models[0]).items()):
        digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        whole.update((json.dumps([name, "float32", list(tensor.shape), digest]) + "\n").encode())
    assert model_digest(checkpoint.tensors, tensor_digests(checkpoint)) == whole.hexdigest()


def test_a_repairs_patch_says_that_it_is_more_than_routers(models, tmp_path):
    merged = models[0]
    shutil.copytree(merged, tmp_path / "repaired")
    file = open_checkpoint(tmp_path / "repaired").tensors["lm_head.weight"].file
    changed = load_file(file)
    save_file({**changed, "lm_head.weight": changed["lm_head.weight"] + 1}, file, {"format": "pt"})
    patch = harc.save_patch(tmp_path / "repaired", merged, tmp_path / "p.patch.safetensors")
    assert patch.others == 1 and patching.read_patch(models[2]).others == 0


def test_another_model_is_refused_and_left_as_it_was(models, own):
    harc.apply_patch(models[2], own)
    with pytest.raises(CheckpointError, match="has this patch already"):
        harc.apply_patch(models[2], own)
    file = open_checkpoint(own).tensors["lm_head.weight"].file
    changed = load_file(file)
    save_file({**changed, "lm_head.weight": changed["lm_head.weight"] + 1}, file, {"format": "pt"})
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(CheckpointError, match="another model, or was changed since"):
        harc.apply_patch(models[2], own)
    assert before == {path.name: path.read_bytes() for path in own.iterdir()}


ROUTER = "model.layers.0.mlp.gate.weight"
HOSTILE = {
    "another name": (lambda held: {**held, "../../evil": torch.zeros(2)}, "replaces '../../evil'"),
    "another shape": (lambda held: {**held, ROUTER: held[ROUTER][:1].contiguous()}, "of shape"),
    "another dtype": (lambda held: {**held, ROUTER: held[ROUTER].half()}, "float16"),
    "not finite": (lambda held: {**held, ROUTER: held[ROUTER] * float("nan")}, "NaN or Inf"),
    "other values": (lambda held: {**held, ROUTER: held[ROUTER] + 1}, "not those that its header speaks of"),
    "a tensor left out": (lambda held: {k: v for k, v in held.items() if k != ROUTER}, "not those that its header"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_patch_is_refused_and_nothing_is_written(models, own, tmp_path, how):
    change, said = HOSTILE[how]
    with patching.safe_open(models[2], framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(models[2])), tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CheckpointError, match=said):
        harc.apply_patch(tmp_path / "bad.safetensors", own)
    assert same(own, models[0]) and sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors", "model"]


@pytest.mark.parametrize(
    "metadata",
    [{}, {"harc": "harc-patch-9"}, {"harc": patching.FORMAT, "fits": "../x", "gives": "y"},
     {"harc": patching.FORMAT, "fits": "0" * 64, "gives": "0" * 64, "model_bytes": "-1", "others": "0"}],
)  # fmt: skip
def test_a_file_that_is_no_patch_is_named(models, own, tmp_path, metadata):
    save_file(load_file(models[2]), tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        harc.apply_patch(tmp_path / "bad.safetensors", own)


def test_a_cut_patch_is_named(models, own, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(models[2].read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: truncated"):
        harc.apply_patch(tmp_path / "cut.safetensors", own)


def test_a_call_cut_short_leaves_the_merge(models, own, monkeypatch, tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(patching, "publish", fail)
    with pytest.raises(KeyboardInterrupt):
        harc.apply_patch(models[2], own)
    assert same(own, models[0]) and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_same_model_twice_or_another_architecture_makes_no_patch(models, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to patch"):
        harc.save_patch(models[0], models[0], tmp_path / "p")
    other = family("olmoe", tmp_path, hidden_size=16)[0]
    with pytest.raises(CheckpointError, match="a patch keeps both"):
        harc.save_patch(other, models[0], tmp_path / "p")
    assert not (tmp_path / "p").exists()
