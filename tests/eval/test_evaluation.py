"""lm-eval's part, with an engine that answers what the test says: prompts, counts, files, bad input."""

import gzip
import json

import pytest

import eval as evaluation
from eval.data import DataError, read_jsonl

WORDS = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(5)]
SYMBOLS = [{"problem": f"Write {i}/2.", "answer": f"\\frac{{{i}}}{{2}}"} for i in (1, 3)]
DOUBLE = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to double a number.\nassert double(2) == 4\n"""\n',
    "entry_point": "double",
    "canonical_solution": "def double(x):\n    return 2 * x\n",
    "base_input": [[2]],
    "plus_input": [[3]],
    "atol": 0,
    "contract": "",
}
COMPLETE = {
    **DOUBLE,
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return 2 * x\n",
}


def _write(path, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return {
        "tiny_gsm8k": _write(tmp_path / "words.jsonl", WORDS),
        "tiny_math500": _write(tmp_path / "symbols.jsonl", SYMBOLS),
        "tiny_humaneval_plus": _write(tmp_path / "complete.jsonl", [COMPLETE]),
        "tiny_mbpp_plus": _write(tmp_path / "double.jsonl.gz", [DOUBLE]),
    }


def _answer(prompt, n):
    """Of n = 16 samples, 3 i of the i-th word problem are right; one or all of the symbols; two of the code."""
    if "What is" in prompt:
        i = int(prompt.split("What is ")[1].split()[0])
        return ([f"it is {i + 1}"] * (3 * i) + [f"it is {i}"] * n)[:n]
    if "Write 1/2" in prompt:
        return ["\\boxed{0.5}"] * n
    if "Write 3/2" in prompt:
        return ["\\boxed{3/2}"] + ["\\boxed{1}"] * (n - 1)
    return ["def double(x):\n    return x + x"] * 2 + ["def double(x):\n    return 5"] * (n - 2)


def _check_prompts(engine):
    """They are the texts that the tiny models are trained on."""
    user, opening = "<|user|>\n{}\n<|assistant|>\n", "Here is a Python solution for the problem:\n```python\n"
    assert [call["prompts"][0] for call in engine.calls] == [
        user.format("What is 0 + 1?\nLet's think step by step."),
        user.format("Write 1/2.\nLet's think step by step."),
        user.format("Complete this function:\n```python\ndef double(x):\n```") + opening,
        user.format(DOUBLE["prompt"].strip()) + opening,
    ]


@pytest.mark.parametrize("prefix", ["", "tiny_"])
def test_chat_tasks_get_their_prompts_and_their_right_samples_counted(scripted, tmp_path, prefix):
    instruction = {"key": 5, "prompt": "Go.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    choice = {"id": "a1", "question": "Where?", "question_concept": "place", "answerKey": "B"}
    choice["choices"] = {"label": list("ABCDE"), "text": ["bank", "park", "mall", "sea", "sky"]}
    data = {
        f"{prefix}ifeval": _write(tmp_path / "instructions.jsonl", [instruction]),
        f"{prefix}commonsense_qa": _write(tmp_path / "choices.jsonl", [choice]),
    }
    engine = scripted(lambda prompt, n: ["B, a park"] + ["Here I go"] * (n - 1))
    results = evaluation.evaluate(engine, data, samples=4, out=tmp_path / "out")
    assert {task: (result["ids"], result["counts"]) for task, result in results.items()} == {
        f"{prefix}ifeval": (["5"], [3]),
        f"{prefix}commonsense_qa": (["a1"], [1]),
    }
    asked = "Where?\nA. bank\nB. park\nC. mall\nD. sea\nE. sky\nAnswer with the letter of the right choice."
    assert [call["prompts"][0] for call in engine.calls] == [
        f"<|user|>\n{text}\n<|assistant|>\n" for text in ("Go.", asked)
    ]
    assert [call["max_tokens"] for call in engine.calls] == ([128, 128] if prefix else [1280, 1024])


def test_all_tasks_of_a_call_get_their_prompts_and_their_right_samples_counted(data, scripted, tmp_path):
    engine = scripted(_answer)
    results = evaluation.evaluate(engine, data, samples=16, temperature=0.1, seed=3, out=tmp_path / "out")
    assert {task: result["counts"] for task, result in results.items()} == {
        "tiny_gsm8k": [0, 3, 6, 9, 12],
        "tiny_math500": [16, 1],
        "tiny_humaneval_plus": [2],
        "tiny_mbpp_plus": [2],
    }
    assert results["tiny_gsm8k"]["accuracy"] == pytest.approx(30 / 80)
    assert results["tiny_mbpp_plus"]["ids"] == ["Mbpp/2"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"] == results
    rows = read_jsonl(tmp_path / "out" / "samples" / "tiny_math500.jsonl")
    assert rows[1]["responses"] == [
        {"text": "\\boxed{1}", "count": 15, "correct": False},
        {"text": "\\boxed{3/2}", "count": 1, "correct": True},
    ]
    assert [call["n"] for call in engine.calls] == [16] * 4
    assert all(call["seed"] == 3 and call["temperature"] == 0.1 for call in engine.calls)
    _check_prompts(engine)


def test_limit_and_length_can_be_set(data, scripted):
    engine = scripted(_answer)
    tasks = {"tiny_gsm8k": data["tiny_gsm8k"]}
    result = evaluation.evaluate(engine, tasks, samples=4, limit=2, max_new_tokens=7, temperature=0.0)
    assert result["tiny_gsm8k"]["ids"] == ["0", "1"]
    assert engine.calls[0]["max_tokens"] == 7 and engine.calls[0]["temperature"] == 0.0


def test_real_tasks_ask_as_the_paper_does(scripted, benchmarks):
    engine = scripted(lambda prompt, n: [""] * n)
    files = {"gsm8k": "gsm8k_test.jsonl", "math500": "math500.jsonl"}
    evaluation.evaluate(engine, {task: benchmarks / file for task, file in files.items()}, samples=2, limit=1)
    assert all(call["prompts"][0].endswith("\nLet's think step by step.\n<|assistant|>\n") for call in engine.calls)
    assert [call["max_tokens"] for call in engine.calls] == [1024, 1024]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the data file is empty"),
        ('{"question": "?", "answer": "#### 1"}\n{"question": \n', ":2: not valid JSON"),
        ('{"question": "?"}\n', ":1: no 'answer'"),
        ("[1]\n", ":1: expected a JSON object, found list"),
    ],
)
def test_a_malformed_file_is_named_with_its_line_before_anything_is_generated(text, message, scripted, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    engine = scripted(_answer)
    with pytest.raises(DataError, match=message) as error:
        evaluation.evaluate(engine, {"gsm8k": path}, samples=2)
    assert str(path) in str(error.value) and not engine.calls


def test_what_cannot_be_evaluated_is_refused_with_what_can(scripted, tmp_path):
    engine = scripted(_answer)
    with pytest.raises(ValueError, match=r"unknown task.*gsm9k.*choose among.*gsm8k"):
        evaluation.evaluate(engine, {"gsm9k": None})
    with pytest.raises(ValueError, match="tiny_gsm8k has no published data set"):
        evaluation.evaluate(engine, {"tiny_gsm8k": None})
    with pytest.raises(DataError, match="no such data file"):
        evaluation.evaluate(engine, {"gsm8k": tmp_path / "none.jsonl"})
    with pytest.raises(ValueError, match="samples=0"):
        evaluation.evaluate(engine, {"gsm8k": tmp_path / "none.jsonl"}, samples=0)
    with pytest.raises(ValueError, match="1 records but 2 responses"):
        evaluation.judge("gsm8k", [{"answer": "1"}], ["1", "2"])
