"""Diagnosis equals measures taken from whole models, and a calibrated model's routing is closer to its sources'."""

import math

import pytest
import torch
from tiny_models import EVERY_KIND, family, random_model, text
from transformers import AutoModelForCausalLM

import harc
from harc.routers import NoRouterError


def logits_of(path, sequences):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    layers, chosen = [], []
    for router in harc.find_routers(model).values():
        layers.append([])
        chosen.append([])

        def keep(_, __, output, z=layers[-1], c=chosen[-1]):
            z.append(output[0])
            c.append(output[2])

        router.module.register_forward_hook(keep)
    with torch.no_grad():
        for sequence in sequences:
            model(sequence.ids[None])
    return [torch.cat(z) for z in layers], [torch.cat(c) for c in chosen]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equals_whole_models(kind, tmp_path) -> None:
    paths, data = family(kind, tmp_path), [text(seed=3), text(seed=4)]
    report = harc.diagnose(paths[0], paths[1:], data, tokens_per_batch=100)
    activation = "sigmoid" if kind == "deepseek_v3" else "softmax"
    for index, sequences in enumerate(data):
        merged, merged_chosen = logits_of(paths[0], sequences)
        source, source_chosen = logits_of(paths[index + 1], sequences)
        pairs = list(zip(source, merged, strict=True))
        moved = [
            torch.tensor([set(a) != set(b) for a, b in zip(s.tolist(), m.tolist(), strict=True)])
            for s, m in zip(source_chosen, merged_chosen, strict=True)
        ]
        shifts = torch.cat([harc.logit_shift(s, m) for s, m in pairs])
        kl = [float(harc.routing_kl(s, m, activation).mean()) for s, m in pairs]
        assert report.kl[index] == pytest.approx(kl, rel=1e-3)
        assert report.mismatch[index] == pytest.approx([float(m.float().mean()) for m in moved], abs=5e-3)
        assert report.shift[index] == pytest.approx([float(harc.logit_shift(s, m).mean()) for s, m in pairs], rel=1e-3)
        assert report.any_mismatch[index] == pytest.approx(float(torch.stack(moved).any(0).float().mean()), abs=1e-2)
        assert report.mismatches_per_token[index] == pytest.approx(sum(report.mismatch[index]))
        assert report.shift_quantiles[index][0.5] == pytest.approx(float(shifts.median()), rel=1e-2)
        assert report.shift_below[index][0.2] == pytest.approx(float((shifts < 0.2).float().mean()), abs=1e-2)
        assert sum(report.shift_histogram[index]["shares"]) == pytest.approx(1)
        assert report.tokens[index] == sum(len(s) for s in sequences)


def test_a_model_against_itself(tmp_path) -> None:
    random_model("olmoe").save_pretrained(tmp_path)
    report = harc.diagnose(tmp_path, [tmp_path], [text()])
    assert report.layers == [0, 1, 2]
    assert report.kl[0] == [0, 0, 0]
    assert report.mismatch[0] == [0, 0, 0]
    assert report.any_mismatch[0] == 0
    assert report.shift_quantiles[0][0.99] == 0


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
    with pytest.raises(NoRouterError):
        harc.diagnose(tmp_path / "dense", paths[1:], [text(), text()])
