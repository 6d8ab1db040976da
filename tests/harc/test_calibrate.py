"""Calibration layer by layer equals a plain re-implementation with whole models in memory."""

import re

import pytest
import torch
from tiny_models import EVERY_KIND, family, random_model, text
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import open_checkpoint


def router_inputs(model, router, sequences):
    """The inputs of one router, sequence by sequence, without padding."""
    seen = []
    tap = router.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        for sequence in sequences:
            model(sequence.ids[None])
    tap.remove()
    return torch.cat(seen)


def plain_calibration(paths, data, **options):
    model = AutoModelForCausalLM.from_pretrained(paths[0], dtype=torch.float32).eval()
    sources = [open_checkpoint(path) for path in paths[1:]]
    for router in harc.find_routers(model).values():
        features = [router_inputs(model, router, sequences) for sequences in data]
        targets = [source.read(router.checkpoint_key).float() for source in sources]
        solution = harc.solve_router(
            features, targets, init=router.weight.data, activation=router.activation, tol=1e-9, **options
        )
        router.weight.data = solution.weight
    return model


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equals_plain_calibration(kind, tmp_path) -> None:
    paths, data = family(kind, tmp_path), [text(seed=0), text(seed=1)]
    report = harc.calibrate(
        paths[0], paths[1:], data, out=tmp_path / "out", tol=1e-9, tokens_per_batch=100, progress=False
    )
    expected = plain_calibration(paths, data)
    written = open_checkpoint(tmp_path / "out")
    for router in harc.find_routers(expected).values():
        weight = written.read(router.checkpoint_key)
        # float32 forward passes of differently padded batches
        assert (weight - router.weight).norm() / router.weight.norm() < 2e-4
    assert report.converged
    assert [layer.layer for layer in report.layers] == list(harc.find_routers(expected))
    assert report.tokens == [sum(len(s) for s in sequences) for sequences in data]
    for layer in report.layers:
        assert layer.kl_after < layer.kl_before


def test_only_routers_change_and_untouched_shards_are_links(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", layers=1, progress=False)
    before, after = open_checkpoint(paths[0]), open_checkpoint(tmp_path / "out")
    changed = [name for name in before if not torch.equal(before.read(name), after.read(name))]
    assert changed == ["model.layers.2.mlp.gate.weight"]
    touched = before.tensors[changed[0]].file.name
    for file in before.files:
        assert file.samefile(tmp_path / "out" / file.name) == (file.name != touched)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_layers_below_are_calibrated_first(tmp_path) -> None:
    """The last layer's router differs when the layers below it were calibrated."""
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "all", progress=False)
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "last", layers=1, progress=False)
    key = "model.layers.2.mlp.gate.weight"
    every, last = (open_checkpoint(tmp_path / name).read(key) for name in ("all", "last"))
    assert (every - last).norm() / last.norm() > 1e-4


def test_batching_does_not_matter(tmp_path) -> None:
    paths, data = family("qwen2_moe", tmp_path), [text(seed=0), text(seed=1)]
    shuffled = [list(reversed(data[0])), data[1]]
    for name, sequences, size in (("a", data, 16), ("b", shuffled, 1000)):
        harc.calibrate(
            paths[0], paths[1:], sequences, out=tmp_path / name, tol=1e-9, tokens_per_batch=size, progress=False
        )
    a, b = (open_checkpoint(tmp_path / name).read("model.layers.1.mlp.gate.weight") for name in ("a", "b"))
    assert (a - b).norm() / a.norm() < 1e-4


def test_bfloat16_checkpoint_keeps_its_dtype(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path, dtype=torch.bfloat16), [text(seed=0), text(seed=1)]
    report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", progress=False)
    written = open_checkpoint(tmp_path / "out")
    assert {info.dtype for info in written.tensors.values()} == {torch.bfloat16}
    assert all(layer.kl_after < layer.kl_before for layer in report.layers)


def test_a_memory_budget_gives_the_same_routers(tmp_path, monkeypatch) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    with pytest.raises(ValueError, match=r"memory_budget_gb is 1e-07: .* for one layer's weights") as refused:
        harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", memory_budget_gb=1e-7, progress=False)
    least = float(re.search(r"needs at least ([\d.e-]+)", str(refused.value))[1]) * 1.01
    assert not (tmp_path / "out").exists()
    mapped = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **options: mapped.append(1) or from_file(*args, **options))
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "memory", progress=False)
    assert not mapped
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "mapped", memory_budget_gb=least, progress=False)
    assert len(mapped) == 4  # hidden states and router inputs of both domains
    memory, files = (open_checkpoint(tmp_path / name) for name in ("memory", "mapped"))
    assert all(torch.equal(memory.read(name), files.read(name)) for name in memory)


def test_zero_layers_is_a_copy(tmp_path) -> None:
    paths = family("olmoe", tmp_path)
    report = harc.calibrate(paths[0], paths[1:], [text(), text()], out=tmp_path / "out", layers=0, progress=False)
    assert report.layers == []
    before, after = open_checkpoint(paths[0]), open_checkpoint(tmp_path / "out")
    assert all(torch.equal(before.read(name), after.read(name)) for name in before)


def test_bad_input_is_refused_before_any_work(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    out = tmp_path / "out"

    def refused(message, merged=paths[0], sources=paths[1:], data=data, **options):
        with pytest.raises(ValueError, match=message):
            harc.calibrate(merged, sources, data, out=out, progress=False, **options)
        assert not out.exists()

    refused("domain 1 .*: 3 calibration tokens, at least 32 needed", data=[data[0], text(count=1, longest=3)])
    refused("data for every source", data=data[:1])
    refused("from 0 to 3", layers=4)
    refused("alpha must lie", alpha=1.2)
    refused("beta must not", beta=-1.0)
    refused("hessian 'half'", hessian="half")
    refused("token id .* has 64 tokens", data=[data[0], text(vocabulary=100, count=200)])
    other = tmp_path / "other"
    random_model("olmoe", num_experts=4).save_pretrained(other)
    refused("router model.layers.0.mlp.gate.weight has shape", sources=[paths[1], other])
    dense = tmp_path / "dense"
    random_model("llama").save_pretrained(dense)
    refused("not a Mixture-of-Experts model", merged=dense)
    refused("no router", sources=[paths[1], dense])
    broken = random_model("olmoe")
    broken.model.layers[1].mlp.gate.weight.data[3, 4] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    refused("NaN or Inf in router model.layers.1", sources=[paths[1], tmp_path / "broken"])
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(ValueError, match="there already"):
        harc.calibrate(paths[0], paths[1:], data, out=out, progress=False)


def test_auto_alpha_and_exact_objective(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path), [text(100, seed=0), text(100, seed=1)]
    plain = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "plain", layers=1, progress=False)
    exact = harc.calibrate(
        paths[0], paths[1:], data, out=tmp_path / "exact", layers=1, objective="kl", alpha="auto", progress=False
    )
    layer = exact.layers[0]
    assert layer.kl_steps[-1] <= layer.kl_steps[0]
    assert layer.alpha is not None
    assert len(layer.held_out_kl) == 5
    assert layer.kept == (layer.kl_after_domains == layer.kl_before_domains)
    assert plain.layers[0].alpha == 0.9


def test_order_of_sequences_does_not_change_what_auto_alpha_holds_out() -> None:
    from harc.calibrate import divide

    sequences = text(30)
    fitted, held = divide(sequences)
    again = divide(list(reversed(sequences)))
    assert [s.ids.tolist() for s in held] == [s.ids.tolist() for s in again[1]]
    assert len(held) == 6
    assert len(fitted) == 24
