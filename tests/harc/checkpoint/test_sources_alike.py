"""Sources with other tokenizers, tied embeddings, one file or many: merged and calibrated alike, or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import CheckpointError, open_checkpoint
from tests.harc.tiny_models import family, random_model, text
from tests.pipelines.small_world import make_tokenizer

DATA = [text(40, 0), text(40, 1)]


def both(sources: list[Path], merged: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Merges the sources, calibrates `merged`; the routers calibrated and the tensors merged, by name."""
    harc.merge("average", sources, None, folder / "average", progress=False)
    harc.calibrate(merged, sources, DATA, out=folder / "out", progress=False)
    AutoModelForCausalLM.from_pretrained(folder / "out")
    average, out = open_checkpoint(folder / "average"), open_checkpoint(folder / "out")
    return {f"{kind} {name}": one.read(name) for kind, one in (("merged", average), ("out", out)) for name in one}


def test_one_file_or_many_make_no_difference(tmp_path) -> None:
    merged, *sources = family("olmoe", tmp_path / "many")
    single = [tmp_path / "single" / path.name for path in (merged, *sources)]
    for path, one in zip((merged, *sources), single, strict=True):
        assert (path / "model.safetensors.index.json").is_file()
        AutoModelForCausalLM.from_pretrained(path).save_pretrained(one)
        assert not (one / "model.safetensors.index.json").exists()
    mixed = [sources[0], single[2]]
    results = [both(sources, merged, tmp_path / "a"), both(single[1:], single[0], tmp_path / "b")]
    results.append(both(mixed, single[0], tmp_path / "c"))
    for other in results[1:]:
        assert results[0].keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_tied_embeddings(tmp_path) -> None:
    merged, *sources = family("qwen3_moe", tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in open_checkpoint(merged)
    result = both(sources, merged, tmp_path)
    mean = sum(open_checkpoint(source).read("model.embed_tokens.weight") for source in sources) / 2
    assert torch.allclose(result["merged model.embed_tokens.weight"], mean)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert harc.diagnose(tmp_path / "out", sources, DATA).kl


@pytest.fixture
def tokenized(tmp_path) -> list[Path]:
    tokenizer = make_tokenizer()
    paths = family("olmoe", tmp_path / "models", vocab_size=len(tokenizer) + 2)
    for path in paths:
        tokenizer.save_pretrained(path)
    return paths


def test_another_numbering_of_tokens_is_refused(tokenized, tmp_path) -> None:
    merged, *sources = tokenized
    file = sources[1] / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))
    for call in (
        lambda: harc.merge("average", sources, None, tmp_path / "out", progress=False),
        lambda: harc.calibrate(merged, sources, DATA, out=tmp_path / "out", progress=False),
        lambda: harc.diagnose(merged, sources, DATA),
    ):
        with pytest.raises(CheckpointError, match=r"source1/tokenizer\.json: token .* has id"):
            call()


def test_added_tokens_within_the_embeddings_are_noted(tokenized, tmp_path, caplog) -> None:
    merged, *sources = tokenized
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(sources[1])
    both(sources, merged, tmp_path)
    assert caplog.text.count("those in both have the same ids") == 2


def test_added_tokens_that_widened_the_embeddings(tokenized, tmp_path) -> None:
    """Cannot be merged; a merge that was made of them otherwise is calibrated: sources give their routers only."""
    merged, *sources = tokenized
    wider = tmp_path / "wider"
    random_model("olmoe", seed=3, vocab_size=open_checkpoint(merged).config["vocab_size"] + 4).save_pretrained(wider)
    shutil.copyfile(merged / "tokenizer.json", wider / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"wider/config\.json: vocab_size is"):
        harc.merge("average", [sources[0], wider], None, tmp_path / "average", progress=False)
    report = harc.calibrate(merged, [sources[0], wider], DATA, out=tmp_path / "out", progress=False)
    assert report.converged
    with pytest.raises(ValueError, match="wider: a vocabulary of"):
        harc.diagnose(merged, [sources[0], wider], DATA)
