"""Multiple choice: which letter a response names."""

import pytest

from eval.data import read_jsonl
from eval.judges import judge
from eval.judges.choices import letters_equal

WORDED = [
    "{}",
    "({})",
    "**{}**",
    "{}. library",
    "{}) library",
    "The answer is {}.",
    "Answer: {}",
    "The correct answer is ({}), a library.",
    "The correct option is **{}**: library",
    "A bank has doors. A library is quiet.\nSo the answer is {}.",
    "It may be A, but people who read go there, so (B) is out. My choice: {}",
    "I would say {}",
]


@pytest.mark.parametrize("wording", WORDED)
def test_the_letter_is_found_however_it_is_said(wording):
    verdicts = judge("commonsense_qa", [{"answer": "D"}] * 2, [wording.format("D"), wording.format("C")])
    assert verdicts == [True, False]


@pytest.mark.parametrize("response", ["", "A library is a place for books.", "No idea.", "I don't know", "F", "d"])
def test_no_letter_is_no_answer(response):
    assert not any(judge("commonsense_qa", [{"answer": letter} for letter in "ABCDE"], [response] * 5))


def test_the_last_answer_given_counts():
    assert judge("commonsense_qa", [{"answer": "B"}], ["The answer is A. Wait, no: the answer is B."]) == [True]


def test_tiny_choices_are_judged_as_the_real_ones_are():
    responses = ["The owl is a bird.\nThe answer is E.", "The owl is a bird.\nThe answer is A."]
    assert judge("tiny_commonsense_qa", [{"answer": "E"}] * 2, responses) == [True, False]


def test_rows_and_records_name_the_right_letter():
    assert letters_equal({"answerKey": "B"}, ["B", "A"]) == [True, False]
    assert letters_equal({"answer": "B"}, ["B", "[invalid]"]) == [True, False]


def test_the_release_has_five_choices_and_its_own_answers_are_right(benchmarks):
    rows = read_jsonl(benchmarks / "commonsense_qa_dev.jsonl", ["question", "choices", "answerKey"])
    assert len(rows) == 1221
    assert all(each["choices"]["label"] == list("ABCDE") for each in rows)
    texts = {each["id"]: dict(zip("ABCDE", each["choices"]["text"], strict=True)) for each in rows}
    gold = [f"{each['answerKey']}. {texts[each['id']][each['answerKey']]}" for each in rows]
    assert all(judge("commonsense_qa", rows, gold))
    wrong = ["ABCDE"[("ABCDE".index(each["answerKey"]) + 2) % 5] for each in rows]
    assert not any(judge("commonsense_qa", rows, wrong))
