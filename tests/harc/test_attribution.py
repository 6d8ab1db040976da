"""What of a merge's loss its routing holds: held against models in which one part alone was changed."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import open_checkpoint, replace_tensors
from tests.harc.tiny_models import family, text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family("olmoe", tmp_path_factory.mktemp("attribution"))


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def changed(source, merged, out, chosen):
    """The source with the merge's weights where their names are chosen."""
    taken = {name: tensor for name, tensor in tensors(merged).items() if chosen(name)}
    return replace_tensors(open_checkpoint(source), out, taken)


def test_other_routers_alone_are_all_of_the_cost(models, tmp_path):
    merged, source, _ = models
    model = changed(source, merged, tmp_path / "m", lambda name: name.endswith("mlp.gate.weight"))
    [found] = harc.attribute(model, [source], [text()])
    assert float((found.merged - found.source).abs().max()) > 1e-3
    torch.testing.assert_close(found.merged_routed, found.source, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.source_routed, found.merged, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.routing, found.merged - found.source, rtol=0, atol=1e-5)


def test_what_lies_behind_the_last_router_is_none_of_its_doing(models, tmp_path):
    merged, source, _ = models
    chosen = ("model.layers.2.mlp.experts.", "lm_head", "model.norm")
    model = changed(source, merged, tmp_path / "m", lambda name: name.startswith(chosen))
    [found] = harc.attribute(model, [source], [text()])
    assert not found.mismatch.any()
    assert float((found.merged - found.source).abs().max()) > 1e-3
    assert float(found.routing.abs().max()) < 1e-5


def test_losses_and_mismatches_are_those_of_the_diagnosis_and_the_parts_add_up(models):
    merged, *sources = models
    data = [text(seed=0), text(seed=1)]
    report = harc.diagnose(merged, sources, data)
    for index, found in enumerate(harc.attribute(merged, sources, data)):
        assert found.merged.tolist() == pytest.approx(report.loss_by_sequence[index], abs=1e-5)
        assert found.source.tolist() == pytest.approx(report.source_loss_by_sequence[index], abs=1e-5)
        assert found.mismatch.double().mean(1).tolist() == pytest.approx(report.mismatch[index], abs=1e-9)
        torch.testing.assert_close(found.routing + found.weights, found.merged - found.source)


def test_greedy_counts_are_those_of_the_whole_model(models):
    merged, source, _ = models
    sequences = text(count=12)
    [found] = harc.attribute(merged, [source], [sequences])
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    for index, sequence in enumerate(sequences):
        first = min(2, len(sequence))
        with torch.no_grad():
            best = model(sequence.ids[None]).logits[0].argmax(-1)
        right = (best[first - 1 : -1] == sequence.ids[first:]).tolist()
        assert int(found.greedy_merged[index]) == next((i for i, one in enumerate(right) if not one), len(right))


def test_text_that_nothing_can_be_predicted_of_is_refused(models):
    merged, source, _ = models
    with pytest.raises(ValueError, match="domain 0: expected sequences of two tokens"):
        harc.attribute(merged, [source], [[]])
    with pytest.raises(ValueError, match="1 sources and 0 data"):
        harc.attribute(merged, [source], [])
