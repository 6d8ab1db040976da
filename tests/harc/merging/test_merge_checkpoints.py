"""`merge` on whole checkpoints: what it writes, what Fisher and RegMean measure, and what it refuses."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import CheckpointError, open_checkpoint
from harc.merging import METHODS
from harc.merging.information import FisherStore, add_fisher_information
from harc.merging.methods.data_driven.fisher import fisher_mean
from harc.merging.methods.data_driven.regmean import regmean
from harc.merging.methods.subspace.wudi import WudiSettings, wudi
from harc.merging.methods.task_vectors.ties import TiesSettings, ties
from harc.models.streaming import LayerStream
from harc.tokens import padded_batches
from tests.harc.merging.merge_models import CONFIGS, load_state, recorded_inputs, save_model, sequences

QUICK_AND_SLOW = [name if name == "olmoe" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
DATA_FREE = sorted(name for name, found in METHODS.items() if found.kind != "data")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By architecture: base and two fine-tunes; the second source is sharded."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for architecture in CONFIGS:
        base = save_model(folder / architecture / "base", architecture)
        first = save_model(folder / architecture / "first", near=base, seed=1)
        second = save_model(folder / architecture / "second", near=base, seed=2, max_shard_size="20KB")
        made[architecture] = (base, first, second)
    return made


def information_of(model, data, store, *, labels="empirical", batch=None, activation_gb=1.0, seed=0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    how = {"labels": labels, "batch": batch, "activation_gb": activation_gb}
    return list(add_fisher_information(model, data, store, generator, **how))


def outer_loaded(source) -> LayerStream:
    stream = LayerStream(source, dtype=torch.float32)
    stream.load_outer()
    return stream


def run(method: str, models: tuple[Path, Path, Path], out: Path, **options: object) -> harc.MergeReport:
    base, first, second = models
    data = [sequences(6, 1), sequences(5, 2)] if METHODS[method].kind == "data" else None
    return harc.merge(method, [first, second], base, out, **{"data": data, "progress": False, **options})


@pytest.mark.parametrize("architecture", QUICK_AND_SLOW)
@pytest.mark.parametrize("method", ["ties", "wudi", "fisher", "regmean"])
def test_a_merge_has_the_published_layout_and_loads(models, tmp_path, method, architecture):
    report = run(method, models[architecture], tmp_path / "out")
    base, out = open_checkpoint(models[architecture][0]), open_checkpoint(tmp_path / "out")
    assert {name: info.shape for name, info in out.tensors.items()} == {n: i.shape for n, i in base.tensors.items()}
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert report.tensors == len(base.tensors) and report.method == method and report.seconds > 0
    assert any(not torch.equal(out.read(name), base.read(name)) for name in base)


@pytest.mark.parametrize("method", DATA_FREE)
def test_every_data_free_method_keeps_bf16_and_shards(models, tmp_path, method):
    base = save_model(tmp_path / "base", dtype=torch.bfloat16)
    sources = [save_model(tmp_path / str(seed), near=base, seed=seed, dtype=torch.bfloat16) for seed in (1, 2)]
    report = harc.merge(method, sources, base, tmp_path / "out", progress=False, max_shard_bytes=9000)
    out = open_checkpoint(tmp_path / "out")
    assert len(out.files) > 1 and {info.dtype for info in out.tensors.values()} == {torch.bfloat16}
    assert report.notes == [] and json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_tensors_are_merged_by_name_and_wudi_leaves_what_is_not_linear(models, tmp_path):
    opened = [open_checkpoint(folder) for folder in models["olmoe"]]
    run("ties", models["olmoe"], tmp_path / "ties", weights=[0.5, 0.5], density=0.3)
    merged = open_checkpoint(tmp_path / "ties")
    for name in merged:
        base, *sources = (checkpoint.read(name) for checkpoint in opened)
        assert torch.equal(merged.read(name), ties(base, sources, [0.5, 0.5], TiesSettings(density=0.3))), name
    run("wudi", models["olmoe"], tmp_path / "wudi", steps=20, lr=1e-3)
    merged = open_checkpoint(tmp_path / "wudi")
    for name in merged:
        base, *sources = (checkpoint.read(name) for checkpoint in opened)
        linear = base.dim() == 2 and ".layers." in name
        assert (".mlp.gate." in name) <= linear  # the router is a linear layer
        expected = wudi(base, sources, [], WudiSettings(steps=20, lr=1e-3)) if linear else base
        torch.testing.assert_close(merged.read(name), expected, rtol=1e-4, atol=1e-5)


def test_random_drops_depend_on_seed_and_name_alone(models, tmp_path):
    for out, options in {"a": {}, "b": {"max_shard_bytes": 9000}, "c": {"seed": 1}}.items():
        run("dare", models["olmoe"], tmp_path / out, **options)
    first, again, other = (open_checkpoint(tmp_path / out) for out in "abc")
    assert all(torch.equal(first.read(name), again.read(name)) for name in first)
    assert not all(torch.equal(first.read(name), other.read(name)) for name in first)


@pytest.mark.parametrize("method", ["average", "karcher", "fisher", "regmean", "regmean_plus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_sources_give_themselves_back(models, tmp_path, method, dtype):
    source = save_model(tmp_path / "source", dtype=dtype)
    data = [sequences(6, 1), sequences(5, 2)]
    harc.merge(method, [source, source], None, tmp_path / "out", data=data, progress=False)
    out, expected = open_checkpoint(tmp_path / "out"), open_checkpoint(source)
    for name in expected:
        torch.testing.assert_close(out.read(name), expected.read(name), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_run_by_layers_is_the_model(models, architecture):
    folder = models[architecture][2]
    checkpoint, model = open_checkpoint(folder), AutoModelForCausalLM.from_pretrained(folder)
    by_layer = outer_loaded(checkpoint)
    names = set()
    with torch.no_grad():
        for _, ids, mask in padded_batches(sequences(4), 100):
            hidden = by_layer.embed(ids, mask)
            for index in range(by_layer.layers):
                with by_layer.loaded(index) as tensors:
                    hidden = by_layer.run(index, hidden, mask)
                    names |= by_layer.parameters.published(tensors).keys()
                assert all(parameter.is_meta for parameter in by_layer.blocks[index].parameters())
            expected = model(ids, attention_mask=mask).logits
            torch.testing.assert_close(by_layer.logits(hidden, mask)[mask.bool()], expected[mask.bool()])
    assert names | set(by_layer.parameters.keys(by_layer.is_outer)) == set(checkpoint)


@pytest.mark.parametrize("architecture", CONFIGS)  # qwen3_moe has tied embeddings
@pytest.mark.parametrize("activation_gb", [1.0, pytest.param(1e-6, marks=pytest.mark.slow)])  # all at once, one by one
def test_fisher_information_is_autograds(models, tmp_path, architecture, activation_gb):
    folder, data = models[architecture][1], sequences(5)
    expected, tokens = _squared_gradients(folder, [[sequence] for sequence in data], "sum")
    store = FisherStore(tmp_path / "store")
    shares = information_of(outer_loaded(folder), data, store, activation_gb=activation_gb)
    assert shares == sorted(shares) and shares[-1] == 1.0
    for name, value in expected.items():
        torch.testing.assert_close(store.get(name), value / tokens, rtol=1e-4, atol=1e-9, msg=name)
    squares = sum((value / tokens).square().sum() for value in expected.values())
    assert store.norm() == pytest.approx(float(squares**0.5), rel=1e-4)


@pytest.mark.parametrize("architecture", ["olmoe", "qwen3_moe"])  # the latter has tied embeddings
def test_fisher_information_of_batches_is_the_square_of_the_mean_losss_gradient(models, tmp_path, architecture):
    folder, data = models[architecture][1], sequences(5)
    expected, _ = _squared_gradients(folder, [data[:2], data[2:4], data[4:]], "mean")
    store = FisherStore(tmp_path / "store")
    assert information_of(outer_loaded(folder), data, store, batch=2)[-1] == 1.0
    for name, value in expected.items():
        torch.testing.assert_close(store.get(name), value / 3, rtol=1e-4, atol=1e-10, msg=name)


def _squared_gradients(folder: Path, batches: list, reduction: str) -> tuple[dict[str, torch.Tensor], int]:
    """By plain autograd: the sum over batches of (∇ loss)²; and the number of response tokens."""
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), 0
    squares = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        losses = []
        for sequence in batch:
            scores = model(sequence.ids[None]).logits[0, :-1].log_softmax(dim=-1)
            losses.append(-scores.gather(1, sequence.ids[1:, None])[sequence.response_start - 1 :])
        loss = torch.cat(losses)
        tokens += len(loss)
        (loss.sum() if reduction == "sum" else loss.mean()).backward()
        for name, value in model.named_parameters():
            squares[name] += value.grad.square()
    return squares, tokens


def test_fisher_labels_may_be_drawn_from_the_model(models, tmp_path):
    model = outer_loaded(models["olmoe"][1])
    found = {}
    for name, labels, seed in (("data", "empirical", 0), ("a", "sampled", 0), ("b", "sampled", 0), ("c", "sampled", 1)):
        found[name] = FisherStore(tmp_path / name)
        information_of(model, sequences(3), found[name], labels=labels, seed=seed)
    norms = {name: store.norm() for name, store in found.items()}
    assert norms["a"] == norms["b"] and len(set(norms.values())) == 3


@pytest.mark.parametrize("normalize", [True, False])
def test_fisher_reaches_into_the_fused_experts(models, tmp_path, normalize):
    data = [sequences(6, 1), sequences(5, 2)]
    run("fisher", models["olmoe"], tmp_path / "out", data=data, weights=[2.0, 1.0], normalize=normalize)
    information = []
    for source, part in zip(models["olmoe"][1:], data, strict=True):
        store = FisherStore(tmp_path / source.name)
        information_of(outer_loaded(source), part, store)
        gate_up = store.get("model.layers.1.mlp.experts.gate_up_proj") / (store.norm() if normalize else 1)
        information.append(gate_up)
    fused = "model.layers.1.mlp.experts.gate_up_proj"
    values = [load_state(source)[fused] for source in models["olmoe"][1:]]
    expected = fisher_mean(values, information, [2.0, 1.0], floor=1e-6, smoothing=0.0)
    out = open_checkpoint(tmp_path / "out")
    for expert in range(4):
        gate, up = expected[expert].chunk(2)
        for name, value in (("gate_proj", gate), ("up_proj", up)):
            torch.testing.assert_close(out.read(f"model.layers.1.mlp.experts.{expert}.{name}.weight"), value)


def test_fisher_as_published_is_the_authors_formula(models, tmp_path):
    data = [sequences(5, 1), sequences(3, 2)]
    report = run("fisher", models["olmoe"], tmp_path / "out", data=data, published=True, batch_size=2)
    assert report.settings | {"score": "batch", "normalize": False, "floor": 0.0, "smoothing": 1e-10} == report.settings
    top = 0
    for name in ("lm_head.weight", "model.layers.1.mlp.gate.weight"):
        numerator = denominator = 0
        for source, part in zip(models["olmoe"][1:], data, strict=True):
            batches = [part[first : first + 2] for first in range(0, len(part), 2)]
            weight = 0.5 * (_squared_gradients(source, batches, "mean")[0][name] / len(batches) + 1e-10)
            numerator, denominator = numerator + weight * load_state(source)[name], denominator + weight
        found = open_checkpoint(tmp_path / "out").read(name)
        torch.testing.assert_close(found, numerator / denominator, rtol=1e-3, atol=1e-5)
        top = max(top, float((found - sum(load_state(s)[name] for s in models["olmoe"][1:]) / 2).abs().max()))
    assert top > 1e-3  # it is not the mean


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("published", [False, True])
def test_regmean_uses_what_each_linear_layer_received(models, tmp_path, architecture, published):
    data = [sequences(9, 1), sequences(7, 2)]
    run("regmean", models[architecture], tmp_path / "out", data=data, tokens_per_batch=40, published=published)
    merged, inputs = (
        load_state(tmp_path / "out"),
        [
            recorded_inputs(AutoModelForCausalLM.from_pretrained(f), d)
            for f, d in zip(models[architecture][1:], data, strict=True)
        ],
    )
    states = [load_state(source) for source in models[architecture][1:]]
    assert {"down_proj", "gate_up_proj", "gate", "q_proj", "o_proj"} <= {
        part for n in inputs[0] for part in n.split(".")
    }
    tokens = [sum(map(len, part)) for part in data]
    for name in states[0]:
        values = [state[name] for state in states]
        if name not in inputs[0]:
            torch.testing.assert_close(merged[name], (values[0] + values[1]) / 2, msg=name)
            continue
        grams = [
            [x.mT @ x / (max(len(x), 1) if published else count) for x in source[name]]
            for source, count in zip(inputs, tokens, strict=True)
        ]
        fused = values[0].dim() == 3
        for expert in range(len(values[0]) if fused else 1):
            weights = [value[expert] if fused else value for value in values]
            expected = regmean(weights, [gram[expert] for gram in grams], [1, 1], damping=0.9)
            found = merged[name][expert] if fused else merged[name]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4, msg=f"{name} {expert}")


def test_a_dense_model_merges_as_well(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    for seed in range(3):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / str(seed))
    models = tuple(tmp_path / str(seed) for seed in range(3))
    for method in ("wudi", "fisher", "regmean"):
        run(method, models, tmp_path / method)
        AutoModelForCausalLM.from_pretrained(tmp_path / method)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tise", {}, "unknown merge method 'tise'; valid are: average, breadcrumbs, dare, della, fisher"),
        (
            "ties",
            {"densty": 0.2},
            r"merge method ties has no setting 'densty'; it has: weights, scale \(1.0\), density \(0.2\)",
        ),
        ("ties", {"density": 1.5}, "merge method ties: density is 1.5, expected above 0 and at most 1"),
        ("della", {"epsilon": 0.6}, "merge method della: epsilon is 0.6"),
        ("wudi", {"weights": [0.5, 0.5]}, "merge method wudi has no setting 'weights'"),
        ("ties", {"weights": [0.5]}, "1 values for 2 sources"),
        ("average", {"weights": [0.0, 0.0]}, "do not sum to a positive value"),
        ("fisher", {"data": None}, "fisher needs data, one list of sequences per source; given: none"),
        ("regmean", {"data": [[], []]}, "the data of .*first holds no tokens"),
    ],
)
def test_what_cannot_be_merged_is_said_before_any_work(models, tmp_path, method, options, message):
    base, *sources = models["olmoe"]
    with pytest.raises(ValueError, match=message):
        harc.merge(method, sources, base, tmp_path / "out", progress=False, **options)
    assert not list(tmp_path.iterdir())


def test_fisher_refuses_data_without_responses(models, tmp_path):
    data = [sequences(3), [harc.TokenSequence(torch.tensor([3, 4, 5]), 3)]]
    with pytest.raises(ValueError, match=r"the data of .*second holds no response tokens"):
        run("fisher", models["olmoe"], tmp_path / "out", data=data)


def test_task_vectors_need_a_base(models, tmp_path):
    with pytest.raises(ValueError, match="ties merges task vectors: it needs the base model"):
        harc.merge("ties", models["olmoe"][1:], None, tmp_path / "out", progress=False)


@pytest.mark.parametrize("method", ["average", "regmean"])
def test_sources_with_nan_or_another_architecture_are_refused(models, tmp_path, method):
    base, first, _ = models["olmoe"]
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(first)
    model.model.layers[1].self_attn.q_proj.weight.data[3, 2] = torch.nan
    model.save_pretrained(broken)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: NaN or Inf in tensor model\.layers\.1\.self_attn\.q_proj"
    ):
        run(method, (base, first, broken), tmp_path / "out")
    with pytest.raises(CheckpointError, match="model_type is"):
        run(method, (base, first, models["mixtral"][1]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_notes_are_logged_and_reported(models, tmp_path, caplog):
    base, first, _ = models["olmoe"]
    other = save_model(tmp_path / "other", near=base, seed=3, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        report = run("average", (base, first, other), tmp_path / "out")
    assert len(report.notes) == 1 and "bfloat16" in report.notes[0] and report.notes[0] in caplog.text


def test_a_killed_merge_leaves_nothing_under_the_final_name_and_runs_again(models, tmp_path):
    base, first, second = models["olmoe"]
    script = """
import sys, harc
from harc.checkpoint import CheckpointWriter
plain, count = CheckpointWriter.write, [0]
def write(self, name, tensor):
    plain(self, name, tensor)
    count[0] += 1
    if count[0] == 9:
        print("half", flush=True)
        sys.stdin.read()
CheckpointWriter.write = write
harc.merge("ties", sys.argv[2:4], sys.argv[1], sys.argv[4], progress=False)
"""
    command = [sys.executable, "-c", script, str(base), str(first), str(second), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    run("ties", models["olmoe"], tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
