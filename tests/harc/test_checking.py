"""A check finds, and names, whatever a merge can lose; and nothing in a sound one, however it is stored."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import harc
from harc.checking.findings import numbers
from harc.checking.loading import largest_difference
from harc.checking.worker import by_transformers
from harc.checkpoint import CheckpointError
from tests.harc.tiny_models import family, random_model
from tests.pipelines.small_world import make_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Base, sources, and their sound average, with a tokenizer each."""
    folder = tmp_path_factory.mktemp("checking")
    tokenizer = make_tokenizer()
    settings = {"vocab_size": len(tokenizer), "norm_topk_prob": False}
    merged, *sources = family("olmoe", folder, **settings)
    random_model("olmoe", 0, **settings).save_pretrained(folder / "base")
    for path in (merged, *sources, folder / "base"):
        tokenizer.save_pretrained(path)
    return {"merged": merged, "sources": sources, "base": folder / "base"}


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def rewrite(models, out, change):
    """The merge with changed tensors, in one file."""
    shutil.copytree(models["merged"], out, ignore=shutil.ignore_patterns("*.safetensors*"))
    held = tensors(models["merged"])
    base, source = tensors(models["base"]), tensors(models["sources"][0])
    change(held, base, source)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def report(models, model, **given):
    given = {"sources": models["sources"], "base": models["base"], "engines": (), **given}
    return harc.check(model, progress=False, **given)


def test_a_sound_merge_has_no_findings_and_moves_as_an_average_does(models):
    found = report(models, models["merged"])
    assert found.sound and not found.findings
    base = tensors(models["base"])
    m, a, b = (tensors(path) for path in (models["merged"], *models["sources"]))
    parts = [f"model.layers.1.mlp.experts.5.{name}_proj.weight" for name in ("gate", "up")]
    d, da, db = (torch.cat([one[n] - base[n] for n in parts]).double().flatten() for one in (m, a, b))
    whole = torch.cat([base[n] for n in parts]).double()
    [move] = [one for one in found.movements if (one.layer, one.kind, one.expert) == (1, "mlp.experts.gate_up_proj", 5)]
    assert move.moved == pytest.approx(float(d.norm() / whole.norm()), rel=1e-6)
    assert move.sources_moved == pytest.approx([float(x.norm() / whole.norm()) for x in (da, db)], rel=1e-6)
    assert move.cosines == pytest.approx([float(d @ x / d.norm() / x.norm()) for x in (da, db)], rel=1e-6)
    assert move.explained == pytest.approx(1, abs=1e-6)
    json.dumps(found.to_dict())


def expert(layer, index, part="down"):
    return f"model.layers.{layer}.mlp.experts.{index}.{part}_proj.weight"


def every(layer, index):
    return [expert(layer, index, part) for part in ("gate", "up", "down")]


def zeroed(held, base, source):
    held.update({name: torch.zeros_like(held[name]) for name in every(1, 3)})


def at_base(held, base, source):
    held.update({name: base[name] for index in (4, 5, 6) for name in every(2, index)})


def swapped(held, base, source):
    for one, other in zip(every(0, 2), every(0, 7), strict=True):
        held[one], held[other] = held[other], held[one]


def duplicated(held, base, source):
    for one, other in zip(every(0, 2), every(0, 7), strict=True):
        held[other] = held[one].clone()


def copied(held, base, source):
    held.update({name: source[name] for name in every(1, 0)})


def scaled(held, base, source):
    held.update({name: 2 * held[name] for name in every(1, 6)})


def elsewhere(held, base, source):
    name, generator = expert(0, 1), torch.Generator().manual_seed(3)
    noise = torch.randn(held[name].shape, generator=generator)
    held[name] = base[name] + noise * (held[name] - base[name]).std()


def layers_swapped(held, base, source):
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 2)]
    held[names[0]], held[names[1]] = held[names[1]], held[names[0]]


def outlier(held, base, source):
    held[expert(1, 4)][0, 0] = 500.0


def not_finite(held, base, source):
    held["model.layers.1.self_attn.v_proj.weight"][0, 0] = float("nan")


def missing(held, base, source):
    for name in every(2, 3):
        del held[name]


def another_dtype(held, base, source):
    held[expert(2, 1)] = held[expert(2, 1)].half()


def another_shape(held, base, source):
    held["lm_head.weight"] = held["lm_head.weight"][:-1]


def extra(held, base, source):
    held["model.layers.0.mlp.bonus.weight"] = torch.ones(3)


def fused(held, base, source):
    for layer in range(3):
        parts = {
            part: torch.stack([held.pop(expert(layer, i, part)) for i in range(8)]) for part in ("gate", "up", "down")
        }
        prefix = f"model.layers.{layer}.mlp.experts"
        held[f"{prefix}.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
        held[f"{prefix}.down_proj"] = parts["down"]


def fused_and_at_base(held, base, source):
    at_base(held, base, source)
    fused(held, base, source)


DAMAGES = {
    zeroed: "layer 1: expert 3 (gate_up_proj, down_proj) all zeros",
    at_base: "layer 2: experts 4–6 (gate_up_proj, down_proj) equal the base's: lost in merging",
    swapped: "layer 0: expert 2 (gate_up_proj, down_proj) layer 0 expert 7's: swapped",
    duplicated: "layer 0: expert 7 (gate_up_proj, down_proj) the same as layer 0 expert 2: duplicated",
    copied: "layer 1: expert 0 (gate_up_proj, down_proj) equal source0's: copied from one source",
    scaled: "layer 1: expert 6 (gate_up_proj, down_proj) 2.0 times the references' size",
    elsewhere: "layer 0: expert 1 (down_proj) moved, but not where any of the sources did",
    layers_swapped: "layer 0: q_proj layer 2's: swapped",
    outlier: "layer 1: expert 4 (down_proj)",
    not_finite: "layer 1: v_proj not finite",
    missing: "missing: layer 2, expert 3 (down_proj, gate_proj, up_proj)",
    another_dtype: "layer 2, expert 1 (down_proj): float16, the rest of the model is float32",
    another_shape: "lm_head.weight: shape",
    extra: "not published: layer 0: mlp.bonus",
    fused: "hold all experts in fused tensors (mlp.experts.down_proj, mlp.experts.gate_up_proj)",
    fused_and_at_base: "layer 2: experts 4–6 (gate_up_proj, down_proj) equal the base's: lost in merging",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damage_is_named_with_its_place(models, tmp_path, damage):
    found = report(models, rewrite(models, tmp_path / "damaged", damage))
    assert not found.sound
    texts = [one.text for one in found.problems]
    assert any(DAMAGES[damage] in text for text in texts), texts
    assert len(texts) <= 2, texts  # a damage is told once, not in every way it shows


def test_what_no_method_must_merge_is_a_note_where_all_of_it_is_the_base(models, tmp_path):
    def change(held, base, source):
        held.update({name: base[name] for name in held if "norm" in name or "embed" in name or "lm_head" in name})

    found = report(models, rewrite(models, tmp_path / "wudi", change))
    assert found.sound and any("equal the base's throughout" in one.text for one in found.findings)


@pytest.mark.parametrize("given", [{"base": None}, {"sources": []}, {"base": None, "sources": []}])
def test_it_says_what_it_cannot_tell_and_finds_the_rest(models, tmp_path, given):
    sound = report(models, models["merged"], **given)
    assert sound.sound and sound.left_out
    for damage in (zeroed, duplicated, not_finite, missing, fused):
        found = report(models, rewrite(models, tmp_path / damage.__name__, damage), **given)
        assert not found.sound, damage.__name__


def test_other_files_than_the_sources_are_named(models, tmp_path):
    shutil.copytree(models["merged"], tmp_path / "m")
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, other = [word for word in words if words[word] in (100, 101)]
    words[one], words[other] = words[other], words[one]
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 3, "rms_norm_eps": 1.0}))
    found = report(models, tmp_path / "m")
    texts = " ".join(one.text for one in found.problems)
    for words in ("tokenizer.json: token", "chat template is none of the sources'", "num_experts_per_tok is 3"):
        assert words in texts
    assert any("rms_norm_eps" in one.text for one in found.findings)


@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral", "deepseek_v3"])
def test_layouts_of_other_architectures_are_known(tmp_path, kind):
    merged, *sources = family(kind, tmp_path)
    random_model(kind, 0).save_pretrained(tmp_path / "base")
    found = harc.check(merged, sources, tmp_path / "base", engines=(), progress=False)
    assert found.sound, found.problems
    assert {one.expert for one in found.movements} == {None, *range(8)}
    alone = harc.check(merged, engines=(), progress=False)
    assert alone.sound, alone.problems


def test_a_folder_without_weights_is_unsound_and_none_is_an_error(models, tmp_path):
    shutil.copytree(models["merged"], tmp_path / "m", ignore=shutil.ignore_patterns("model-00002*"))
    [problem] = report(models, tmp_path / "m").problems
    assert "this shard is missing" in problem.text
    with pytest.raises(CheckpointError, match="no such folder"):
        report(models, tmp_path / "nothing")
    with pytest.raises(ValueError, match="engine 'jax'"):
        report(models, models["merged"], engines=["jax"])


def test_the_loading_in_transformers_gives_the_models_own_log_probabilities(models):
    found = by_transformers(str(models["merged"]), [5, 9, 17, 4])
    model = AutoModelForCausalLM.from_pretrained(models["merged"]).eval()
    with torch.no_grad():
        expected = model(torch.tensor([[5, 9, 17, 4]])).logits[0].double().log_softmax(-1)
    assert not found["load"] and len(found["log_probs"]) == 3
    for row, said, follows in zip(expected, found["log_probs"], (9, 17, 4), strict=False):
        assert str(follows) in said and len(said) in (5, 6)
        assert all(said[token] == pytest.approx(float(row[int(token)]), abs=1e-5) for token in said)


def test_engines_that_differ_beyond_the_tolerance_are_told_apart():
    one = [{"1": -0.5, "2": -1.0}, {"3": -2.0}]
    assert largest_difference(one, [{"1": -0.5, "7": -9.0}, {"3": -2.25}]) == 0.25


@pytest.mark.slow  # another process, which imports transformers
def test_transformers_says_what_a_cut_merge_lacks(models, tmp_path):
    cut = rewrite(models, tmp_path / "cut", lambda held, *_: held.pop("model.norm.weight"))
    found = report(models, cut, engines=["transformers"])
    assert any("transformers has no weights for 1 parameters" in one.text for one in found.problems)
    assert found.engines["transformers"]["predictions"] > 4


def test_numbers_in_words():
    assert numbers([7, 4, 5, 6, 1]) == "1, 4–7"
