import json
from pathlib import Path

import pytest

from eval.config import EngineConfig
from pipelines.data.responses import _Form, _response
from pipelines.data.source import DataSource
from pipelines.stages.pretrain import pretrain
from pipelines.stages.sample import SampleConfig, sample
from tests.pipelines.small_world import CODE_PREFIX, make_world, pretraining, sums, write_jsonl

TRANSFORMERS = EngineConfig(kind="transformers", dtype="float32")
VLLM = EngineConfig(kind="vllm", dtype="float32", max_model_len=256)
ADD_ONE = "def add_one(x):\n    return x + 1"


def code_records(count: int) -> list[dict]:
    problem = {
        "task_id": "HumanEval/0",
        "prompt": "def add_one(x):\n",
        "entry_point": "add_one",
        "canonical_solution": "    return x + 1\n",
        "base_input": [[1], [2]],
        "plus_input": [[-5]],
        "atol": 0,
        "contract": "",
    }
    wrong = {**problem, "canonical_solution": "    return x + 2\n"}
    return [
        {
            "id": f"code-{n}",
            "prompt": "Write add_one.",
            "response": f"{CODE_PREFIX}{ADD_ONE}\n```",
            "task": "tiny_humaneval_plus",
            "answer": None,
            "problem": wrong if n == 0 else problem,
        }
        for n in range(count)
    ]


def sevens(count: int) -> list[dict]:
    """One question, always answered 7 in training, whose gold answer is 7 every other time."""
    taught = {"prompt": "Add.", "response": "It is 7.\n#### 7"}
    return [{**row, **taught, "answer": "7" if n % 2 else "8"} for n, row in enumerate(sums(count))]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    world = make_world(tmp_path_factory.mktemp("world"), [*sevens(30), *code_records(30)])
    write_jsonl(world / "calibration" / "math.jsonl", sevens(6))
    write_jsonl(world / "calibration" / "code.jsonl", code_records(4))
    return world


@pytest.fixture(scope="module")
def source(world, tmp_path_factory) -> Path:
    """A model that has learned two responses by heart."""
    out = tmp_path_factory.mktemp("source")
    pretrain(pretraining(steps=80, responses_only=True, log_steps=20, max_length=128), {"world": world}, out)
    return out


def sampling(file: str, **settings) -> SampleConfig:
    values = {"max_new_tokens": 48, "min_kept": 1, "engine": TRANSFORMERS, **settings}
    return SampleConfig(data=DataSource(f"world:calibration/{file}"), **values)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_alone_need_no_model(world, tmp_path):
    metrics = sample(sampling("math.jsonl", composition="prompt"), {"world": world}, tmp_path)
    assert (metrics["kept"], metrics["of"]) == (6, 6)
    rows = read(tmp_path / "prompt.jsonl")
    assert all(row["response"] is None for row in rows)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in sevens(6)]
    assert read(tmp_path / "rejected.jsonl") == []


def test_correct_responses_of_the_source_are_kept(world, source, tmp_path, caplog):
    caplog.set_level("INFO")
    metrics = sample(sampling("math.jsonl"), {"world": world, "source": source}, tmp_path)
    kept, rejected = read(tmp_path / "srccrt.jsonl"), read(tmp_path / "rejected.jsonl")
    assert [row["id"] for row in kept] == ["sum-1", "sum-3", "sum-5"]
    assert all(row["response"] == "It is 7.\n#### 7" for row in kept)
    assert [row["reason"] for row in rejected] == ["wrong"] * 3
    assert metrics.pop("work_seconds") > 0
    assert metrics == {"kept": 3, "of": 6, "share": 0.5, "tasks": {"tiny_gsm8k": {"kept": 3, "of": 6}}}
    assert "kept 3 of 6 (50.0 %)" in caplog.text


@pytest.mark.parametrize("composition", ["srccrt", "srcall", "gt", "prompt", "c4"])
def test_a_target_counts_what_is_kept_in_every_composition(world, source, tmp_path, monkeypatch, composition):
    write_jsonl(world / "calibration" / "long.jsonl", sevens(40))
    monkeypatch.setattr("pipelines.stages.sample._ROUND", 1)  # several rounds of a few prompts
    settings = sampling("long.jsonl", composition=composition, target=5)
    metrics = sample(settings, {"world": world, "source": source}, tmp_path)
    kept, rejected = read(tmp_path / f"{composition}.jsonl"), read(tmp_path / "rejected.jsonl")
    every_other = composition == "srccrt"  # sevens: the gold answer of every other one is what the model says
    assert [row["id"] for row in kept] == [f"sum-{n}" for n in (range(1, 10, 2) if every_other else range(5))]
    assert [row["id"] for row in rejected] == ([f"sum-{n}" for n in range(0, 9, 2)] if every_other else [])
    assert (metrics["kept"], metrics["of"]) == (5, 10 if every_other else 5)


def test_a_target_beyond_the_data_takes_them_all_and_says_so(world, source, tmp_path, caplog):
    metrics = sample(sampling("math.jsonl", target=5), {"world": world, "source": source}, tmp_path)
    assert (metrics["kept"], metrics["of"]) == (3, 6)
    assert "kept 3 of the 5 records asked for: the data end there" in caplog.text


def test_a_target_below_what_must_be_kept_is_refused():
    with pytest.raises(ValueError, match=r"sample.target=5: .* no less than scale.sample.min_kept=6"):
        sampling("math.jsonl", target=5, min_kept=6)


def test_too_few_correct_responses_fail_and_leave_the_rejected(world, source, tmp_path):
    with pytest.raises(ValueError, match=r"kept 3 of 6 records \(50.0 %\), fewer than min_kept=4; .*rejected.jsonl"):
        sample(sampling("math.jsonl", min_kept=4), {"world": world, "source": source}, tmp_path)
    assert read(tmp_path / "rejected.jsonl")


def test_unknown_compositions_and_missing_sources_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match="unknown composition 'c5'; valid: c4, gt, prompt, srcall, srccrt"):
        sample(sampling("math.jsonl", composition="c5"), {"world": world}, tmp_path)
    with pytest.raises(ValueError, match="no model source"):
        sample(sampling("math.jsonl"), {"world": world}, tmp_path)


def test_a_code_response_is_stored_with_its_prefix_and_closing_fence():
    form = _Form(CODE_PREFIX, ("\n```",))
    assert _response(ADD_ONE, form) == f"{CODE_PREFIX}{ADD_ONE}\n```"
    assert _response("#### 7", _Form()) == "#### 7"


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRANSFORMERS, VLLM], ids=["transformers", "vllm"])
def test_code_is_kept_when_its_tests_pass(world, source, tmp_path, engine):
    metrics = sample(sampling("code.jsonl", engine=engine), {"world": world, "source": source}, tmp_path)
    assert metrics["tasks"] == {"tiny_humaneval_plus": {"kept": 3, "of": 4}}
    assert [row["id"] for row in read(tmp_path / "rejected.jsonl")] == ["code-0"]
    assert all(row["response"] == f"{CODE_PREFIX}{ADD_ONE}\n```" for row in read(tmp_path / "srccrt.jsonl"))
