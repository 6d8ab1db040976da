"""RegMean++ against the sources run by transformers with the merged layers below."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.merging.methods.data_driven.regmean import regmean
from tests.harc.merging.merge_models import load_state, recorded_inputs, save_model, sequences


@pytest.mark.parametrize("architecture", ["olmoe", pytest.param("qwen3_moe", marks=pytest.mark.slow)])  # tied head
def test_each_layer_is_fitted_to_what_the_merged_layers_below_hand_it(tmp_path, architecture):
    base = save_model(tmp_path / "base", architecture)
    sources = [save_model(tmp_path / str(seed), near=base, seed=seed) for seed in (1, 2)]
    data = [sequences(9, 1), sequences(7, 2)]
    harc.merge("regmean_plus", sources, None, tmp_path / "out", data=data, tokens_per_batch=40, progress=False)
    merged, states = load_state(tmp_path / "out"), [load_state(source) for source in sources]
    tokens = [sum(map(len, part)) for part in data]
    fitted = set()
    for place in (0, 1, "head"):
        inputs = [
            recorded_inputs(_above(source, merged, place), part) for source, part in zip(sources, data, strict=True)
        ]
        for name in inputs[0]:
            if not (name.startswith(f"model.layers.{place}.") or (place == "head" and name == "lm_head.weight")):
                continue
            fitted.add(name)
            values = [state[name] for state in states]
            fused = values[0].dim() == 3
            for expert in range(len(values[0]) if fused else 1):
                grams = [
                    part[name][expert].mT @ part[name][expert] / count
                    for part, count in zip(inputs, tokens, strict=True)
                ]
                weights = [value[expert] if fused else value for value in values]
                expected = regmean(weights, grams, [1, 1], damping=0.9)
                found = merged[name][expert] if fused else merged[name]
                # float32 features through two layers; a looser match than this is another layer's features
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4, msg=f"{name} {expert}")
    for name in merged.keys() - fitted - {"lm_head.weight"}:
        torch.testing.assert_close(merged[name], (states[0][name] + states[1][name]) / 2, msg=name)
    assert {"model.layers.1.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight"} <= fitted


def _above(source, merged, place):
    """The source's model with the merged one's embeddings and all its layers below `place`."""
    model = AutoModelForCausalLM.from_pretrained(source)
    below = 2 if place == "head" else place
    with torch.no_grad():
        for name, value in model.named_parameters():
            layer = int(name.split(".")[2]) if ".layers." in name else None
            if "embed_tokens" in name or (layer is not None and layer < below):
                value.copy_(merged[name])
    return model


def test_its_second_layer_is_not_regmeans_and_one_source_is_given_back(tmp_path):
    base = save_model(tmp_path / "base")
    sources = [save_model(tmp_path / str(seed), near=base, seed=seed) for seed in (1, 2)]
    data = [sequences(9, 1), sequences(7, 2)]
    for method in ("regmean", "regmean_plus"):
        harc.merge(method, sources, None, tmp_path / method, data=data, progress=False)
    first, second = (load_state(tmp_path / method) for method in ("regmean", "regmean_plus"))
    assert not torch.allclose(
        first["model.layers.1.mlp.gate.weight"], second["model.layers.1.mlp.gate.weight"], atol=1e-4
    )
    harc.merge("regmean_plus", sources[:1], None, tmp_path / "one", data=data[:1], progress=False)
    one, source = load_state(tmp_path / "one"), load_state(sources[0])
    for name, value in source.items():
        torch.testing.assert_close(one[name], value, rtol=0, atol=0, msg=name)
