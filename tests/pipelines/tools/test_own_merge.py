"""A merge of the user's own, calibrated through the command line: the checkpoint, its card, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import harc
from pipelines.cli import main
from tests.harc.tiny_models import family
from tests.pipelines.small_world import make_tokenizer, sums, write_jsonl
from tests.pipelines.test_cli import run


@pytest.fixture(scope="module")
def merge(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("own")
    tokenizer = make_tokenizer()
    paths = family("olmoe", folder, vocab_size=len(tokenizer), max_position_embeddings=256)
    for path in paths:
        tokenizer.save_pretrained(path)
    records = sums(60)
    math = write_jsonl(folder / "math.jsonl", [{"prompt": r["prompt"], "response": r["response"]} for r in records])
    turns = [
        [{"role": "user", "content": f"{r['prompt']} Again."}, {"role": "assistant", "content": r["response"]}]
        for r in records
    ]
    chat = write_jsonl(folder / "chat.jsonl", [{"messages": messages} for messages in turns])
    return {"merged": paths[0], "sources": paths[1:], "data": [math, chat], "folder": folder}


def arguments(merge: dict, out: Path, **changes: str) -> list[str]:
    given = {
        "merged": str(merge["merged"]),
        "sources": "[" + ",".join(map(str, merge["sources"])) + "]",
        "data": "[" + ",".join(map(str, merge["data"])) + "]",
        "out": str(out),
        **changes,
    }
    return ["+experiment=calibrate", *(f"{key}={value}" for key, value in given.items())]


@pytest.mark.parametrize(("target", "limit"), [("merged_inputs", 2), ("source_inputs", 1000)])
def test_the_result_is_the_merge_with_other_routers_and_a_card(target, limit, merge, tmp_path):
    out = tmp_path / "calibrated"
    chosen = [f"calibrate.target={target}", f"calibrate.max_iter={limit}", "calibrate.bias=keep"]
    done = run(*arguments(merge, out), *chosen, f"outputs={tmp_path / 'o'}")
    assert done.returncode == 0, done.stdout + done.stderr
    before = {k: v for file in merge["merged"].glob("*.safetensors") for k, v in load_file(file).items()}
    after = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.endswith("mlp.gate.weight")}
    AutoModelForCausalLM.from_pretrained(out)
    record = json.loads((out / "calibration.json").read_text())
    mean = {when: sum(map(sum, record[when]["kl"].values())) for when in ("before", "after")}
    assert mean["after"] < mean["before"]
    card = (out / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and "| layer | KL, merged | KL, calibrated |" in card
    assert ("what the sources route on their own" in card) == (target == "source_inputs")
    assert f"target={target}" in card and "bias=keep" in card
    short = [layer["layer"] for layer in record["calibration"]["unconverged"]]
    assert card.count("**not converged: iteration limit**") == len(short) == (3 if limit == 2 else 0)
    assert (out / "routing_kl.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".calibrated*"))
    assert "calibrated.patch.safetensors" in card and "harc.apply_patch(" in card
    harc.apply_patch(tmp_path / "calibrated.patch.safetensors", merge["merged"], tmp_path / "patched")
    patched = {k: v for file in (tmp_path / "patched").glob("*.safetensors") for k, v in load_file(file).items()}
    assert all(torch.equal(patched[key], after[key]) for key in after)


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json")
WAYS = ("missing", "empty", "cut")
DAMAGES = [(name, how) for name in FILES for how in WAYS if (name, how) != ("tokenizer_config.json", "missing")]


@pytest.mark.parametrize(("name", "how"), DAMAGES)  # tokenizer.json and a chat template are a tokenizer
def test_a_damaged_file_of_the_merge_is_named(merge, tmp_path, name, how, monkeypatch, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(merge["merged"], folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if how != "missing":
        (folder / name).write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    out = tmp_path / "calibrated"
    given = arguments(merge, out, merged=str(folder))
    monkeypatch.setattr(sys, "argv", ["run.py", *given, f"outputs={tmp_path / 'o'}", f"hydra.run.dir={tmp_path / 'h'}"])
    assert main() == 1
    said = capsys.readouterr().err.splitlines()
    error = next(line for line in said if line.startswith("error: "))
    assert str(folder) in error
    assert not any(word in error for word in ("KeyError", "TypeError", "JSONDecodeError", "calibration tokens"))
    assert not out.exists()
