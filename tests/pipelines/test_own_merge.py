"""A merge of the user's own, calibrated through the command line: the checkpoint, its card, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

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


def test_the_result_is_the_merge_with_other_routers_and_a_card(merge, tmp_path):
    out = tmp_path / "calibrated"
    done = run(*arguments(merge, out), f"outputs={tmp_path / 'o'}")
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
    assert (out / "routing_kl.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".calibrated*"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": "[/no/where]", "data": "[/no/where.jsonl]"}, "/no/where: no such file"),
        ({"data": "[a.jsonl]"}, "one data file a source: found 2 sources and 1 data"),
        ({"heldout": "2"}, "heldout=2.0: expected a share between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(merge, tmp_path, changes, says):
    out = tmp_path / "calibrated"
    done = run(*arguments(merge, out, **changes), f"outputs={tmp_path / 'o'}")
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert not out.exists()


def test_a_malformed_line_is_named(merge, tmp_path):
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"prompt": "fine", "response": "x"}, {"question": "what?"}])
    done = run(*arguments(merge, tmp_path / "c", data=f"[{merge['data'][0]},{broken}]"), f"outputs={tmp_path / 'o'}")
    assert done.returncode == 1 and "broken.jsonl" in done.stderr and "2" in done.stderr, done.stderr
    assert "`prompt`" in done.stderr


def test_an_existing_output_is_left_alone(merge, tmp_path):
    out = tmp_path / "there"
    write_jsonl(out / "mine.jsonl", [{"a": 1}])
    done = run(*arguments(merge, out), f"outputs={tmp_path / 'o'}")
    assert done.returncode == 1 and "there already" in done.stderr and (out / "mine.jsonl").exists()
