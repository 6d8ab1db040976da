"""Task files of lm-eval's format in a folder: their prompts, filters and metrics judge; every problem has its count."""

import json
import logging

import pytest

import eval as evaluation
from eval.data import read_jsonl
from eval.task_folder import check_folder, evaluate_folder

GSM = """
task: their_gsm8k
custom_dataset: !function utils.words
test_split: test
doc_to_text: "{{question}} Let's think step by step."
doc_to_target: "{{answer}}"
num_fewshot: 0
generation_kwargs: {until: [], max_gen_toks: 77, temperature: 0.7}
repeats: 4
filter_list:
  - name: last
    filter:
      - {function: regex, group_select: -1, regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)'}
      - {function: take_first}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: [",", '\\$', '(?s).*#### ', '\\.$']
"""
MATH = """
task: their_math
custom_dataset: !function utils.symbols
test_split: test
doc_to_text: "{{problem}} Let's think step by step."
doc_to_target: "{{answer}}"
generation_kwargs: {until: []}
process_results: !function utils.verified
metric_list: [{metric: math_verify, aggregation: mean, higher_is_better: true}]
"""
LISTED = """
include: gsm.yaml
task: their_listed
filter_list:
  - name: words
    filter: [{function: custom, filter_fn: !function utils.last_words}]
metric_list:
  - {metric: !function utils.share_right, aggregation: mean, higher_is_better: true}
"""
UTILS = """
from datasets import Dataset
from math_verify import parse, verify

def words(**_):
    rows = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\\n#### {i + 1}"} for i in range(3)]
    return {"test": Dataset.from_list(rows)}

def symbols(**_):
    rows = [{"problem": "Solve.", "answer": gold, "unique_id": gold} for gold in ("3", "3\\\\sqrt{13}", "(4,-2)")]
    return {"test": Dataset.from_list(rows)}

def verified(doc, results):
    gold, answer = parse(doc["answer"], parsing_timeout=None), parse(results[0], parsing_timeout=None)
    return {"math_verify": float(verify(gold, answer, timeout_seconds=None))}

def last_words(resps, docs):
    return [[text.split()[-1] if text.split() else "" for text in texts] for texts in resps]

def share_right(references, predictions):
    gold = references[0].rsplit(" ", 1)[-1]
    return sum(text == gold for text in predictions[0]) / len(predictions[0])
"""
LOOSE = {  # the same answer in words that the loose regex and the comparison of strings reject, or take
    "it is 1": True,
    "it is 1.": True,
    "it is $1": True,
    "it is 1.0": False,
    "it is 1...": False,
    "that makes 1, I think": True,
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "eval_tasks"
    (path / "math").mkdir(parents=True)
    for name, text in (("gsm.yaml", GSM), ("listed.yaml", LISTED), ("utils.py", UTILS)):
        (path / name).write_text(text)
    (path / "math/math.yaml").write_text(MATH)
    (path / "math/utils.py").write_text(UTILS)
    return path


def _answers(prompt, n):
    if "What is" in prompt:
        i = int(prompt.split("What is ")[1].split()[0])
        return ([f"it is {i + 1}"] * (3 * i) + [f"it is {i}"] * n)[:n]
    return ["\\boxed{3}"] * n


def test_their_prompts_filters_and_metrics_count_our_samples(folder, scripted, tmp_path):
    engine = scripted(_answers)
    results = evaluate_folder(
        engine, folder, {"their_gsm8k": None, "their_math": None}, seed=3, samples=16, out=tmp_path / "out"
    )
    assert results["their_gsm8k"]["counts"] == [0, 3, 6]
    assert results["their_math"]["counts"] == [16, 16, 0]  # bare, 3 sqrt(13) is read as 3
    assert results["their_math"]["ids"] == ["3", "3\\sqrt{13}", "(4,-2)"]
    assert results["their_gsm8k"]["accuracy"] == pytest.approx(9 / 48)
    assert engine.calls[0]["prompts"][0] == "<|user|>\nWhat is 0 + 1? Let's think step by step.\n<|assistant|>\n"
    asked = [{key: call[key] for key in ("n", "temperature", "max_tokens", "seed")} for call in engine.calls]
    assert asked == [{"n": 16, "temperature": 0.1, "max_tokens": tokens, "seed": 3} for tokens in (77, 256)]
    assert json.loads((tmp_path / "out/results.json").read_text())["tasks"] == results
    (row,) = read_jsonl(tmp_path / "out/samples/their_gsm8k.jsonl")[1:2]
    assert [(one["text"], one["count"], one["correct"]) for one in row["responses"]] == [
        ("it is 1", 13, False),
        ("it is 2", 3, True),
    ]


def test_a_list_metric_over_all_samples_is_the_mean_of_the_counts(folder, scripted):
    from eval.task_folder import _load

    results = evaluate_folder(scripted(_answers), folder, {"their_listed": None}, samples=16)
    task = _load(folder, "their_listed", 16, 0.1, None)
    for i, count in enumerate(results["their_listed"]["counts"]):
        doc, texts = task.eval_docs[i], _answers(f"What is {i} ", 16)
        (kept,) = task._filters[0].filters[0]().apply([texts], [doc])
        assert task.process_results(doc, [kept]) == {"share_right": count / 16}
    assert results["their_listed"]["counts"] == [0, 3, 6]


def test_gradings_differ_where_the_published_one_is_looser_or_stricter_than_ours(folder, scripted, tmp_path):
    texts = list(LOOSE)
    results = evaluate_folder(
        scripted(lambda prompt, n: texts), folder, {"their_gsm8k": None}, samples=len(texts), limit=1
    )
    assert results["their_gsm8k"]["counts"] == [sum(LOOSE.values())]
    assert evaluation.judge("gsm8k", [{"answer": "#### 1"}] * len(texts), texts) == [True] * len(texts)

    golds = ["3", "3\\sqrt{13}", "(4,-2)"]
    engine = scripted(lambda prompt, n: [f"\\boxed{{{gold}}}" for gold in golds])
    evaluate_folder(engine, folder, {"their_math": None}, samples=len(golds), out=tmp_path)
    rows = read_jsonl(tmp_path / "samples/their_math.jsonl")
    right = [[one["text"] for one in row["responses"] if one["correct"]] for row in rows]
    ours = evaluation.judge("math500", [{"answer": gold} for gold in golds], [f"\\boxed{{{gold}}}" for gold in golds])
    assert right == [["\\boxed{3}"], ["\\boxed{3}"], []] and ours == [True] * 3


def test_that_python_of_the_folder_runs_is_said_once(folder, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            check_folder(folder, {"their_gsm8k": None})
    assert [record.message.count("your own code") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        ({}, {"gsm8k": None}, "no task 'gsm8k'; it has their_gsm8k, their_listed, their_math"),
        ({}, {}, "no tasks are asked for"),
        ({}, {"their_gsm8k": "acc,last"}, "metric acc,last; name one of exact_match,last"),
        ({"task: their_gsm8k": "task: their_gsm8k\noutput_type: multiple_choice"}, {"their_gsm8k": None},
         "output_type multiple_choice; expected generate_until"),
        ({"task: their_gsm8k": "task: their_gsm8k\nunsafe_code: true"}, {"their_gsm8k": None},
         "marked unsafe_code.*set HF_ALLOW_CODE_EVAL=1"),
        ({"filter_list:": "filter_list:\n  - {name: all, filter: [{function: take_first}]}"}, {"their_gsm8k": None},
         "metric is not chosen; name one of exact_match,all, exact_match,last"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_a_model_is_loaded(folder, change, asked, message, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    text = GSM
    for old, new in change.items():
        text = text.replace(old, new)
    (folder / "gsm.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_folder(folder, asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("function: take_first", "function: take_first_k, k: 4"), "its filter last or its metric fails"),
        (("metric: exact_match", "metric: bleu"), "expected right \\(1\\) or wrong \\(0\\)|fails on single samples"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_judge_one_sample_is_refused_before_anything_is_drawn(folder, change, message, scripted):
    (folder / "gsm.yaml").write_text(GSM.replace(*change))
    engine = scripted(_answers)
    with pytest.raises(ValueError, match=message):
        evaluate_folder(engine, folder, {"their_gsm8k": None}, samples=2)
    assert not engine.calls


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder; expected one with lm-eval task files, or lm_eval"):
        check_folder(tmp_path / "none", {"gsm8k": None})


def test_one_of_several_filters_can_be_chosen_in_lm_evals_own_tasks():
    assert check_folder("lm_eval", {"gsm8k": "exact_match,flexible-extract"}) == {
        "gsm8k": ("exact_match", "flexible-extract")
    }
