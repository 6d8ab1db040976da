"""Diagnosis equals what whole models compute, and a calibrated model's routing is closer to its sources'."""

import math
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.models.routers import NoRouterError
from harc.tokens import TokenSequence
from tests.harc.tiny_models import EVERY_KIND, family, random_model, text

NO_RESPONSE = TokenSequence(torch.arange(3, 12), 9)  # a conversation without a response
ONE_TOKEN = TokenSequence(torch.tensor([7]), 1)


@dataclass
class Whole:
    """What a whole model computes: router inputs, logits and choices by layer, logits of every sequence."""

    inputs: list[torch.Tensor]
    logits: list[torch.Tensor]
    chosen: list[torch.Tensor]
    vocabulary: list[torch.Tensor]


def load(path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, experts_implementation="eager").eval()


def run_whole(model, sequences) -> Whole:
    seen: dict[int, list] = {}
    hooks = [
        router.module.register_forward_hook(
            lambda _, args, out, layer=layer: seen.setdefault(layer, []).append((args[0], out[0], out[2]))
        )
        for layer, router in harc.find_routers(model).items()
    ]
    with torch.no_grad():
        vocabulary = [model(sequence.ids[None]).logits[0] for sequence in sequences]
    for hook in hooks:
        hook.remove()
    layers = [[torch.cat([part.flatten(0, -2) for part in parts]) for parts in zip(*each, strict=True)]
              for each in seen.values()]  # fmt: skip
    return Whole(*(list(parts) for parts in zip(*layers, strict=True)), vocabulary)


def on_inputs(model, inputs) -> tuple[list, list]:
    with torch.no_grad():
        outputs = [r.module(x) for r, x in zip(harc.find_routers(model).values(), inputs, strict=True)]
    return [out[0] for out in outputs], [out[2] for out in outputs]


def check_routing(report, index, suffix, merged, source, activation) -> None:
    """Holds a report against (logits, chosen) of merged model and source, layer by layer."""

    def found(name):
        return getattr(report, f"{name}{suffix}")[index]

    pairs = list(zip(source[0], merged[0], strict=True))
    sets = [
        [(set(a), set(b)) for a, b in zip(s.tolist(), m.tolist(), strict=True)]
        for s, m in zip(source[1], merged[1], strict=True)
    ]
    moved = torch.tensor([[a != b for a, b in layer] for layer in sets]).double()
    shared = torch.tensor([[len(a & b) / len(a) for a, b in layer] for layer in sets])
    shifts = torch.cat([harc.logit_shift(s, m) for s, m in pairs])
    # Float32 on both sides; the shares are over some 400 tokens, of which a close call or two may fall differently.
    assert found("kl") == pytest.approx([float(harc.routing_kl(s, m, activation).mean()) for s, m in pairs], rel=1e-3)
    assert found("mismatch") == pytest.approx(moved.mean(1).tolist(), abs=5e-3)
    assert found("overlap") == pytest.approx(shared.mean(1).tolist(), abs=5e-3)
    assert found("shift") == pytest.approx([float(harc.logit_shift(s, m).mean()) for s, m in pairs], rel=1e-3)
    assert found("any_mismatch") == pytest.approx(float((moved.sum(0) > 0).double().mean()), abs=1e-2)
    assert found("mismatches_per_token") == pytest.approx(float(moved.sum(0).mean()), abs=1e-2)
    assert found("shift_quantiles")[0.5] == pytest.approx(float(shifts.median()), rel=1e-2)
    assert found("shift_below")[0.2] == pytest.approx(float((shifts < 0.2).float().mean()), abs=1e-2)
    assert sum(found("shift_histogram")["shares"]) == pytest.approx(1)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_routing_on_own_and_on_the_same_inputs_equals_whole_models(kind, tmp_path) -> None:
    paths, data = family(kind, tmp_path), [text(seed=3), text(seed=4)]
    report = harc.diagnose(paths[0], paths[1:], data, tokens_per_batch=100)
    activation = "sigmoid" if kind == "deepseek_v3" else "softmax"
    for index, sequences in enumerate(data):
        source_model = load(paths[index + 1])
        merged, source = run_whole(load(paths[0]), sequences), run_whole(source_model, sequences)
        own, other = (merged.logits, merged.chosen), (source.logits, source.chosen)
        check_routing(report, index, "", own, other, activation)
        check_routing(report, index, "_same", own, on_inputs(source_model, merged.inputs), activation)
        assert report.tokens[index] == sum(len(s) for s in sequences)
        # The first router's inputs have drifted by the attention before it, so that the two kinds differ throughout.
        assert all(a != b for a, b in zip(report.kl[index], report.kl_same[index], strict=True))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Norms compute in float32 whatever the model's dtype is, on both sides.
    [(torch.float64, 1e-6), (torch.float32, 2e-4)],
)
@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_output_kl_equal_whole_models(dtype, tolerance, tied, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("harc.likelihood._LOGITS_BYTES", 4 * 64 * 50)  # several blocks of tokens
    paths = family("olmoe", tmp_path, tie_word_embeddings=tied)
    data = [[*text(seed=3), NO_RESPONSE, ONE_TOKEN], text(seed=4)]
    report = harc.diagnose(paths[0], paths[1:], data, dtype=dtype, tokens_per_batch=100)
    for index, sequences in enumerate(data):
        merged = run_whole(load(paths[0], dtype), sequences).vocabulary
        source = run_whole(load(paths[index + 1], dtype), sequences).vocabulary
        expected: dict[str, list[float]] = {"loss": [], "source_loss": [], "output_kl": []}
        for sequence, z, z_source in zip(sequences, merged, source, strict=True):
            start = 2 if sequence.response_start == 2 else 1
            if len(sequence) == 1:
                for values in expected.values():
                    values.append(0.0)
                continue
            p, q = (each[start - 1 : -1].double().log_softmax(-1) for each in (z_source, z))
            target = sequence.ids[start:, None]
            expected["loss"].append(float(-q.gather(1, target).mean()))
            expected["source_loss"].append(float(-p.gather(1, target).mean()))
            expected["output_kl"].append(float((p.exp() * (p - q)).sum(-1).mean()))
        counts = [len(s) - (2 if s.response_start == 2 else 1) for s in sequences]
        assert report.response_tokens[index] == counts
        for name, values in expected.items():
            assert getattr(report, f"{name}_by_sequence")[index] == pytest.approx(values, rel=tolerance)
            total = sum(value * count for value, count in zip(values, counts, strict=True))
            assert getattr(report, name)[index] == pytest.approx(total / sum(counts), rel=tolerance)


def test_a_model_against_itself(tmp_path) -> None:
    random_model("olmoe").save_pretrained(tmp_path)
    report = harc.diagnose(tmp_path, [tmp_path], [text()])
    assert report.layers == [0, 1, 2]
    assert report.kl[0] == [0, 0, 0]
    assert report.mismatch[0] == [0, 0, 0]
    assert report.any_mismatch[0] == 0
    assert report.shift_quantiles[0][0.99] == 0
    assert report.overlap_same[0] == [1, 1, 1]
    assert report.output_kl[0] == 0
    assert report.loss[0] == report.source_loss[0] > 0


def test_calibration_brings_routing_closer_on_fresh_text(tmp_path) -> None:
    paths = family("olmoe", tmp_path)
    harc.calibrate(paths[0], paths[1:], [text(200, 0), text(200, 1)], out=tmp_path / "out", progress=False)
    fresh = [text(seed=5), text(seed=6)]
    before, after = (harc.diagnose(path, paths[1:], fresh) for path in (paths[0], tmp_path / "out"))
    for index in (0, 1):
        assert sum(after.kl[index]) < sum(before.kl[index])
    assert math.isfinite(after.shift_quantiles[0][0.99])


def test_bad_input_is_named(tmp_path) -> None:
    paths = family("olmoe", tmp_path)
    with pytest.raises(ValueError, match="text for every source"):
        harc.diagnose(paths[0], paths[1:], [text()])
    with pytest.raises(ValueError, match="domain 1: no tokens"):
        harc.diagnose(paths[0], paths[1:], [text(), []])
    random_model("llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="at least one sequence of two tokens"):
        harc.diagnose(paths[0], paths[1:], [text(), [ONE_TOKEN]])
    random_model("olmoe", num_hidden_layers=2).save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="short: layers 2, 3 in"):
        harc.diagnose(paths[0], [paths[1], tmp_path / "short"], [text(), text()])
    with pytest.raises(NoRouterError):
        harc.diagnose(tmp_path / "dense", paths[1:], [text(), text()])
