"""Calibration layer by layer equals a plain re-implementation with whole models in memory."""

import json
import logging
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.calibration.settings import CalibrationSettings, choose_layers
from harc.calibration.text import divide
from harc.checkpoint import CheckpointError, open_checkpoint
from harc.solver.settings import ALPHAS
from tests.harc.tiny_models import EVERY_KIND, family, random_model, text


def router_inputs(model, router, sequences):
    """The inputs of one router, sequence by sequence, without padding."""
    seen = []
    tap = router.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        for sequence in sequences:
            model(sequence.ids[None])
    tap.remove()
    return torch.cat(seen)


def with_ones(router, x):
    """Router inputs, and a feature that is always 1 for a bias."""
    return x if router.bias is None else torch.cat([x, torch.ones(len(x), 1).to(x)], dim=1)


def joined(weight, *bias):
    return torch.cat([weight, *(b[:, None] for b in bias)], dim=1)


def weight_of(router):
    """A router's weight, its bias the last column."""
    return joined(*(part.data for part in (router.weight, router.bias) if part is not None))


def put(router, weight):
    """Puts a weight into a router, rounded to what is stored."""
    stored = weight.float().double()
    router.weight.data = stored[:, : router.weight.shape[1]]
    if router.bias is not None:
        router.bias.data = stored[:, -1]


def whole(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    model.set_experts_implementation("eager")  # torch has no grouped product in float64
    return model


def assert_written(out, model):
    """As stored, in float32; float64 passes leave no near-tie that padding could turn into another choice."""
    written = open_checkpoint(out)
    for router in harc.find_routers(model).values():
        for key, value in zip(router.keys, (router.weight, router.bias), strict=False):
            assert (written.read(key) - value).norm() / value.norm() < 1e-6


def plain_calibration(paths, data, **options):
    model = whole(paths[0])
    sources = [open_checkpoint(path) for path in paths[1:]]
    for router in harc.find_routers(model).values():
        features = [with_ones(router, router_inputs(model, router, sequences)) for sequences in data]
        targets = [joined(*(source.read(key).double() for key in router.keys)) for source in sources]
        init = weight_of(router)
        solution = harc.solve_router(features, targets, init=init, activation=router.activation, tol=1e-9, **options)
        put(router, solution.weight)
    return model


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equals_plain_calibration(kind, tmp_path) -> None:
    paths, data = family(kind, tmp_path), [text(seed=0), text(seed=1)]
    report = harc.calibrate(
        paths[0],
        paths[1:],
        data,
        out=tmp_path / "out",
        tol=1e-9,
        tokens_per_batch=100,
        dtype=torch.float64,
        progress=False,
    )
    expected = plain_calibration(paths, data)
    assert_written(tmp_path / "out", expected)
    assert report.converged
    assert [layer.layer for layer in report.layers] == list(harc.find_routers(expected))
    assert report.tokens == [sum(len(s) for s in sequences) for sequences in data]
    for layer in report.layers:
        assert layer.kl_after < layer.kl_before


@pytest.mark.parametrize("target", ["merged_inputs", "source_inputs"])
def test_a_bias_may_be_kept_as_merged(target, tmp_path) -> None:
    paths, data = family("gpt_oss", tmp_path, dtype=torch.bfloat16), [text(60, seed=0), text(60, seed=1)]
    report = harc.calibrate(
        paths[0], paths[1:], data, out=tmp_path / "out", bias="keep", target=target, layers=1, progress=False
    )
    (layer,) = report.layers
    assert report.to_dict()["settings"]["bias"] == "keep"
    assert not layer.kept and layer.kl_after < layer.kl_before
    before, after = open_checkpoint(paths[0]), open_checkpoint(tmp_path / "out")
    changed = [name for name in before if not torch.equal(before.read(name), after.read(name))]
    assert changed == [f"model.layers.{layer.layer}.mlp.router.weight"]


def test_a_kept_bias_is_solved_beside_in_whole_models(tmp_path) -> None:
    paths, data = family("gpt_oss", tmp_path), [text(seed=0), text(seed=1)]
    harc.calibrate(
        paths[0], paths[1:], data, out=tmp_path / "out", bias="keep", tol=1e-9, dtype=torch.float64, progress=False
    )
    assert_written(tmp_path / "out", plain_calibration(paths, data, fixed=1))


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


def test_a_router_is_passed_on_as_written_or_as_solved(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path, dtype=torch.bfloat16), [text(seed=0), text(seed=1)]
    expected: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for rounded, weights in expected.items():
        harc.calibrate(
            paths[0], paths[1:], data, out=tmp_path / f"{rounded}", tol=1e-9, dtype=torch.float64, rounded=rounded,
            progress=False,
        )  # fmt: skip
        model = whole(paths[0])
        for router in harc.find_routers(model).values():
            features = [router_inputs(model, router, sequences) for sequences in data]
            targets = [open_checkpoint(path).read(router.checkpoint_key).double() for path in paths[1:]]
            solution = harc.solve_router(features, targets, init=router.weight.data, tol=1e-9)
            weights.append(solution.weight.bfloat16())
            router.weight.data = weights[-1].double() if rounded else solution.weight.double()
        written = open_checkpoint(tmp_path / f"{rounded}")
        for router, weight in zip(harc.find_routers(model).values(), weights, strict=True):
            assert (written.read(router.checkpoint_key) == weight).float().mean() > 0.999
    assert torch.equal(expected[True][0], expected[False][0])
    assert not torch.equal(expected[True][-1], expected[False][-1])


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
    refused("domain 1 .*: 0 calibration tokens", data=[data[0], []])
    refused("data for every source", data=data[:1])
    refused("the model has 3 MoE layers", layers=4)
    refused("alpha=1.2: expected a number from 0 to 1, or auto", alpha=1.2)
    refused("beta=-1.0: expected a number, 0 or more", beta=-1.0)
    refused("hessian=half: expected one of full, diagonal, identity", hessian="half")
    refused("target=sources: expected one of merged_inputs, source_inputs", target="sources")
    refused("token id .* has 64 tokens", data=[data[0], text(vocabulary=100, count=200)])
    other = tmp_path / "other"
    random_model("olmoe", num_experts=4).save_pretrained(other)
    refused("router model.layers.0.mlp.gate.weight has shape", sources=[paths[1], other])
    dense = tmp_path / "dense"
    random_model("llama").save_pretrained(dense)
    refused("not a Mixture-of-Experts model", merged=dense)
    refused("of one architecture", sources=[paths[1], dense])
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
    assert set(layer.held_out_kl) == {"start", *map(str, ALPHAS)}
    assert layer.kept == (layer.kl_after_domains == layer.kl_before_domains)
    assert plain.layers[0].alpha == 0.9


def kl_in_float64(x, source, router):
    """The routing KL by its definition."""
    log_p, log_q = ((x.double() @ weight.double().T).log_softmax(1) for weight in (source, router))
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


@pytest.mark.parametrize(("count", "seed", "expected"), [(6, 0, [False, False, True]), (10, 2, [True, True, False])])
def test_auto_alpha_never_raises_held_out_kl_in_any_layer(count, seed, expected, tmp_path) -> None:
    """With so little text that some layers overfit: each layer's choice is what whole models and plain solves say."""
    paths, data = family("olmoe", tmp_path), [text(count, seed=seed), text(count, seed=seed + 10)]
    report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", alpha="auto", min_tokens=1, progress=False)
    assert [layer.kept for layer in report.layers] == expected
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    merged, *sources = (open_checkpoint(path) for path in paths)
    parts = [divide(sequences) for sequences in data]
    for layer, router in zip(report.layers, harc.find_routers(model).values(), strict=True):
        fitted, held = ([router_inputs(model, router, part[which]) for part in parts] for which in (0, 1))
        targets = [source.read(router.checkpoint_key) for source in sources]
        start = merged.read(router.checkpoint_key)

        def held_out_kl(weight, held=held, targets=targets):
            return sum(kl_in_float64(x, w, weight) for x, w in zip(held, targets, strict=True)) / len(held)

        before, after = held_out_kl(start), held_out_kl(router.weight.data)
        assert after <= before
        solved = {a: held_out_kl(harc.solve_router(fitted, targets, init=start, alpha=a).weight) for a in ALPHAS}
        assert layer.kept == (min(solved.values()) >= before) == torch.equal(router.weight.data, start)
        assert after == pytest.approx(before if layer.kept else min(solved.values()), rel=1e-4)
        judged = {"start": before, **{str(alpha): value for alpha, value in solved.items()}}
        assert layer.held_out_kl == pytest.approx(judged, rel=1e-3)


def test_layers_before_the_last_are_forwarded_and_not_solved(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", layers="25%", tol=1e-9, progress=False)
    assert [layer.layer for layer in report.layers] == [2]
    model = AutoModelForCausalLM.from_pretrained(paths[0], dtype=torch.float32).eval()
    router = harc.find_routers(model)[2]
    features = [router_inputs(model, router, sequences) for sequences in data]  # of the merged model as it is
    targets = [open_checkpoint(path).read(router.checkpoint_key) for path in paths[1:]]
    expected = harc.solve_router(features, targets, init=router.weight.data, tol=1e-9).weight
    written = open_checkpoint(tmp_path / "out").read(router.checkpoint_key)
    assert (written - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2]),
        (0, []),
        (2, [1, 2]),
        ("25%", [2]),
        ("34%", [1, 2]),
        ("66.7%", [0, 1, 2]),
        ("100%", [0, 1, 2]),
    ],
)
def test_layers_may_be_all_a_number_or_a_share(layers, expected) -> None:
    assert choose_layers([0, 1, 2], CalibrationSettings(layers=layers).layers) == expected


@pytest.mark.parametrize("layers", ["0%", "101%", "half", "50", -1, 1.5, True])
def test_other_layers_are_refused(layers) -> None:
    with pytest.raises(ValueError, match=f"layers={layers}: expected all, a number .* share such as 25%"):
        CalibrationSettings(layers=layers)


def test_a_solve_that_stops_short_is_logged_and_reported(tmp_path, caplog) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    with caplog.at_level(logging.WARNING):
        report = harc.calibrate(
            paths[0], paths[1:], data, out=tmp_path / "out", max_iter=2, tol=1e-12, layers=1, progress=False
        )
    (layer,) = report.layers
    assert not report.converged
    record = json.loads(json.dumps(report.to_dict()))
    assert record["converged"] is False
    assert record["unconverged"] == [{"layer": 2, "residual": layer.residual, "reason": "iteration limit"}]
    assert layer.residual > 1e-12
    assert f"layer 2: iteration limit at residual {layer.residual:.2e}" in caplog.text


@pytest.mark.parametrize("which", [0, 1], ids=["merged", "a source"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_shard_that_is_missing_or_cut_is_named(which, damage, tmp_path) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    shard = open_checkpoint(paths[which]).files[2]
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    message = f"{re.escape(str(shard))}: " + ("this shard is missing" if damage == "missing" else "truncated")
    with pytest.raises(CheckpointError, match=message):
        harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_are_refused_with_their_layer(tmp_path) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    model = AutoModelForCausalLM.from_pretrained(paths[0])
    model.model.layers[1].self_attn.o_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"layer 1 of .*broken: NaN or Inf in the inputs of its router"):
        harc.calibrate(tmp_path / "broken", paths[1:], data, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_order_of_sequences_does_not_change_what_auto_alpha_holds_out() -> None:
    sequences = text(30)
    fitted, held = divide(sequences)
    again = divide(list(reversed(sequences)))
    assert [s.ids.tolist() for s in held] == [s.ids.tolist() for s in again[1]]
    assert len(held) == 6
    assert len(fitted) == 24
