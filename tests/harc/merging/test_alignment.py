"""Experts matched by assignment: against brute force, and by what a permuted model computes."""

import json
import logging
from itertools import permutations

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import CheckpointError, open_checkpoint
from harc.merging.alignment import LayerMatch, aligned, assign, cosines, match_experts
from harc.merging.experts import find_experts
from harc.models.architectures import moe_types, tiny_model, try_architecture
from tests.harc.merging.merge_models import save_model, sequences

# One key an expert; a selection bias; fused, with biases of router and experts; fused; a bias beside the router.
QUICK = ("olmoe", "deepseek_v3", "gpt_oss", "granitemoe", "ernie4_5_moe")
ONE_GROUP = {"deepseek_v3": {"n_group": 1, "topk_group": 1}}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_assignment_is_the_best_of_all(count):
    similarity = torch.randn(count, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    every = range(count)
    best = max(permutations(every), key=lambda order: float(sum(similarity[e, order[e]] for e in every)))
    assert assign(similarity) == list(best)
    assert assign(torch.zeros(count, count, dtype=torch.float64)) == list(every)  # nothing to choose by


def test_cosines_are_those_of_rows():
    first, second = torch.randn(4, 40_000), torch.randn(4, 40_000)
    second[2] = 0
    expected = torch.nn.functional.cosine_similarity(first.double()[:, None], second.double()[None], dim=-1)
    torch.testing.assert_close(cosines(first, second), expected, rtol=1e-10, atol=1e-12)


def shuffled(folder, out):
    """A copy whose experts are in another order in each layer; the orders."""
    checkpoint = open_checkpoint(folder)
    layers = find_experts(checkpoint)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(one.count, generator=generator).tolist() for one in layers]
    view = aligned(
        checkpoint, layers, [LayerMatch(one.layer, order, 1, 1) for one, order in zip(layers, orders, strict=True)]
    )
    out.mkdir()
    save_file({name: view.read(name).contiguous() for name in view}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(checkpoint.config))
    return out, {one.layer: order for one, order in zip(layers, orders, strict=True)}


def random_model(model_type, folder):
    torch.manual_seed(0)
    model = tiny_model(model_type, **ONE_GROUP.get(model_type, {}))
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and "inv_freq" not in name:
                value.normal_(std=0.3).add_(value.dim() == 1 and "norm" in name)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", QUICK)
def test_a_shuffled_copy_computes_the_same_and_merges_to_the_original_exactly(tmp_path, model_type):
    original = random_model(model_type, tmp_path / "original")
    copy, orders = shuffled(original, tmp_path / "copy")
    same_function(original, copy)
    report = harc.merge("average", [original, copy], None, tmp_path / "out", align=True, progress=False)
    first, out = open_checkpoint(original), open_checkpoint(tmp_path / "out")
    assert any(not torch.equal(first.read(name), open_checkpoint(copy).read(name)) for name in first)
    for name in first:
        assert torch.equal(out.read(name), first.read(name)), name
    for match in report.matches[str(copy)]:
        assert [orders[match.layer][source] for source in match.order] == list(range(len(match.order)))
        assert match.similarity == pytest.approx(1) and match.in_place < 0.9
    assert "put in order" in report.experts[str(copy)]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(moe_types().keys() - set(QUICK)))
def test_every_architecture_is_put_in_order_or_refused(tmp_path, model_type):
    if try_architecture(model_type).router is None:
        pytest.skip("has no router that is known")
    original = random_model(model_type, tmp_path / "original")
    try:
        copy, _ = shuffled(original, tmp_path / "copy")
    except CheckpointError as refused:
        assert model_type in REFUSED, refused
        return
    config = open_checkpoint(original).config
    if (config.get("n_group") or config.get("num_expert_group") or 1) == 1:
        same_function(original, copy)
    harc.merge("average", [original, copy], None, tmp_path / "out", align=True, progress=False)
    first, out = open_checkpoint(original), open_checkpoint(tmp_path / "out")
    assert all(torch.equal(out.read(name), first.read(name)) for name in first)


REFUSED = ("dbrx", "longcat_flash")  # matrices that are rows of one; experts without any


def same_function(first, second):
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (first, second)]
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = [model(ids, use_cache=False).logits for model in models]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)  # float32, experts summed in another order


@pytest.mark.parametrize("layout", ["olmoe", "qwen3_moe"])
def test_fine_tunes_of_one_base_are_in_its_order(tmp_path, layout, caplog):
    base = save_model(tmp_path / "base", layout)
    sources = [save_model(tmp_path / str(seed), near=base, seed=seed) for seed in (1, 2)]
    for align in (False, True):
        report = harc.merge("ties", sources, base, tmp_path / f"out-{align}", align=align, progress=False)
        for source in sources:
            assert all(match.identity for match in report.matches[str(source)])
            assert "in the reference's order in all" in report.experts[str(source)]
    first, second = (open_checkpoint(tmp_path / f"out-{align}") for align in (False, True))
    assert all(torch.equal(first.read(name), second.read(name)) for name in first)
    assert "another order" not in caplog.text
    assert "in the reference's order" in (tmp_path / "out-True/README.md").read_text()


def test_another_order_is_warned_of_and_merged_only_on_request(tmp_path, caplog):
    original = save_model(tmp_path / "original")
    copy, _ = shuffled(original, tmp_path / "copy")
    with caplog.at_level(logging.WARNING):
        report = harc.merge("average", [original, copy], None, tmp_path / "out", progress=False)
    assert "align=true" in caplog.text and "another order in 2 of 2 layers" in report.experts[str(copy)]
    out, first = open_checkpoint(tmp_path / "out"), open_checkpoint(original)
    assert not torch.equal(out.read("model.layers.0.mlp.gate.weight"), first.read("model.layers.0.mlp.gate.weight"))


def test_methods_that_run_the_sources_run_them_in_order(tmp_path):
    original = save_model(tmp_path / "original")
    copy, _ = shuffled(original, tmp_path / "copy")
    data = [sequences(4, 1)] * 2
    harc.merge("regmean", [original, copy], None, tmp_path / "out", data=data, align=True, progress=False)
    first, out = open_checkpoint(original), open_checkpoint(tmp_path / "out")
    for name in first:
        torch.testing.assert_close(out.read(name), first.read(name), rtol=1e-5, atol=1e-6, msg=name)


def test_rows_of_a_permuted_tensor_are_read_alone(tmp_path):
    original = random_model("granitemoe", tmp_path / "original")
    checkpoint = open_checkpoint(original)
    layers = find_experts(checkpoint)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    view = aligned(checkpoint, layers, [LayerMatch(one.layer, order, 1, 1) for one in layers])
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    assert torch.equal(view.read_rows(name, 1, 5), checkpoint.read(name)[[1, 0, 2, 7]])
    assert torch.equal(view.read_rows("lm_head.weight", 1, 3), checkpoint.read("lm_head.weight")[1:3])


def test_routers_alone_are_compared_unless_asked(tmp_path):
    base = save_model(tmp_path / "base")
    other = save_model(tmp_path / "other", near=base, seed=1)
    reference, source = open_checkpoint(base), open_checkpoint(other)
    layers = find_experts(reference)
    quick = match_experts(reference, source, layers, routers_only=True)
    rows = [checkpoint.read("model.layers.1.mlp.gate.weight").double() for checkpoint in (reference, source)]
    assert quick[1].similarity == pytest.approx(float(torch.cosine_similarity(*rows).mean()))
    assert match_experts(reference, source, layers)[1].similarity != pytest.approx(quick[1].similarity, abs=1e-6)


def test_a_dense_model_has_no_experts_to_align(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    assert harc.merge("average", [tmp_path / "dense"] * 2, None, tmp_path / "out", progress=False).experts == {}
    with pytest.raises(ValueError, match="not a Mixture-of-Experts model"):
        harc.merge("average", [tmp_path / "dense"] * 2, None, tmp_path / "out2", align=True, progress=False)
    assert not (tmp_path / "out2").exists()
