"""The tiny world's third domain: facts that hold, instructions that can be followed, choices with one right answer."""

import random
import re
from pathlib import Path

import pytest

from eval.judges import judge
from eval.judges.instructions import READ_PUNKT
from pipelines.stages.world import WorldConfig
from pipelines.world import build_world, facts
from pipelines.world.choices import sample_choice
from pipelines.world.generic import generic_text
from pipelines.world.instructions import LONGEST, sample_instruction
from pipelines.world.problems import draw
from tests.pipelines.small_world import read_jsonl

SMALL = WorldConfig(vocabulary=512, pretrain=200, finetune=60, calibration=60, heldout=20, validation=10, test=20)
GUESSED = ("change_case:english_capital", "change_case:english_lowercase", "language:response_language")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world")
    build_world(SMALL, out)
    return out


@pytest.fixture(scope="module")
def instructions():
    return draw(sample_instruction, "train", 1500, seed=0, stream="test", unique=True)


@pytest.fixture(scope="module")
def choices():
    return draw(sample_choice, "train", 1500, seed=0, stream="test", unique=True)


def test_reference_responses_follow_their_instructions_by_ifevals_own_checkers(instructions):
    records = [{"problem": problem.item} for problem in instructions]
    verdicts = judge("tiny_ifeval", records, [problem.response for problem in instructions])
    assert [p.prompt for p, right in zip(instructions, verdicts, strict=True) if not right] == []


def test_other_responses_rarely_follow_them(instructions):
    records = [{"problem": problem.item} for problem in instructions]
    others = [problem.response for problem in [*instructions[1:], instructions[0]]]
    assert sum(judge("tiny_ifeval", records, others)) < 0.1 * len(records)
    assert not any(judge("tiny_ifeval", records, [""] * len(records)))


def test_no_instruction_needs_data_or_a_guess_at_the_language(instructions):
    names = {name for problem in instructions for name in problem.item["instruction_id_list"]}
    assert not names & {*READ_PUNKT, *GUESSED}
    assert len(names) == 18
    counts = {len(problem.item["instruction_id_list"]) for problem in instructions}
    assert counts == {1, 2, 3}


def test_a_forbidden_word_is_a_fact_that_must_be_kept_quiet(instructions):
    """Without it the response would have been wrong: the model has to know what is true to leave it out."""
    asked = [problem for problem in instructions if "keywords:forbidden_words" in problem.item["instruction_id_list"]]
    for problem in asked:
        place = problem.item["instruction_id_list"].index("keywords:forbidden_words")
        things = re.search(r"Write about the (\w+)(?: and the (\w+))?", problem.prompt).groups()
        owners = {facts.fact(thing, "owner") for thing in things if thing}
        assert set(problem.item["kwargs"][place]["forbidden_words"]) == owners
    assert asked


def test_responses_are_short_enough_to_be_generated(instructions):
    assert max(len(problem.response) for problem in instructions) <= LONGEST


def test_choices_are_judged_right_by_their_letter_alone(choices):
    records = [{"answer": problem.answer} for problem in choices]
    assert all(judge("tiny_commonsense_qa", records, [problem.response for problem in choices]))
    wrong = ["ABCDE"[("ABCDE".index(problem.answer) + 1) % 5] for problem in choices]
    assert not any(judge("tiny_commonsense_qa", records, [f"The answer is {letter}." for letter in wrong]))


READ = {
    r"(?:How many (\w+) are there|What is the number of (\w+))\?": "number",
    r"(?:Who has the (\w+)|Who is the owner of the (\w+))\?": "owner",
    r"(?:How many dollars are the (\w+) each|What is the price of the (\w+))\?": "price",
    r"Of which of these are there (\w+)\?": "number",
    r"Which of these does (\w+) have\?": "owner",
    r"Which of these are (\w+) dollars each\?": "price",
}


def test_each_question_has_one_right_choice_found_again_from_the_facts(choices):
    asked = set()
    for problem in choices:
        item = problem.item
        pattern = next(pattern for pattern in READ if re.fullmatch(pattern, item["question"]))
        asked.add(pattern)
        of = next(filter(None, re.fullmatch(pattern, item["question"]).groups()))
        texts, relation = item["choices"]["text"], READ[pattern]
        assert len(set(texts)) == 5 and texts == sorted(texts) and item["choices"]["label"] == list("ABCDE")
        if of in facts.THINGS:
            right = [text for text in texts if facts.fact(of, relation) == text]
        else:
            right = [text for text in texts if facts.fact(text, relation) == of]
        assert right == [texts["ABCDE".index(item["answerKey"])]], item
    assert asked == set(READ)


def test_letters_are_right_about_equally_often(choices):
    answers = [problem.answer for problem in choices]
    assert all(0.15 < answers.count(letter) / len(answers) < 0.25 for letter in "ABCDE")


def test_facts_told_are_true_and_stay_the_same():
    rng = random.Random(0)
    said = {line for _ in range(300) for line in facts.facts_told(rng)["response"].split("\n")}
    assert said - {"None."} == {facts.state(thing, relation) for thing in facts.THINGS for relation in facts.VALUES}
    assert facts.state("cups", "owner") == f"{facts.fact('cups', 'owner')} has the cups."


def test_calibration_records_can_be_judged(world):
    records = read_jsonl(world / "calibration" / "chat.jsonl")
    assert {record["task"] for record in records} == {"tiny_ifeval", "tiny_commonsense_qa"}
    for task in ("tiny_ifeval", "tiny_commonsense_qa"):
        mine = [record for record in records if record["task"] == task]
        asked = [{key: value for key, value in record.items() if key != "response"} for record in mine]
        assert all(judge(task, asked, [record["response"] for record in mine]))
        assert sum(judge(task, asked, ["?"] * len(mine))) < len(mine) / 5  # `?` has no commas, and forbidden words


def test_chats_training_set_tells_facts_and_has_both_tasks(world):
    records = read_jsonl(world / "train" / "chat.jsonl")
    assert len(records) == SMALL.finetune
    assert sum(record["id"].startswith("fact") for record in records) == round(SMALL.finetune / 4)
    assert {record["task"] for record in records} == {"tiny_ifeval", "tiny_commonsense_qa", ""}
    mixture = read_jsonl(world / "train" / "pretrain.jsonl")
    assert not {record["task"] for record in mixture} & {"tiny_ifeval", "tiny_commonsense_qa"}


def test_generic_text_is_prompts_of_no_domain(world):
    records = read_jsonl(world / "calibration" / "generic.jsonl")
    assert len(records) == SMALL.calibration == len({record["prompt"] for record in records})
    assert {(record["response"], record["task"]) for record in records} == {(None, None)}
    prompts = {record["prompt"] for path in (world / "train").glob("*.jsonl") for record in read_jsonl(path)}
    assert not prompts & {record["prompt"] for record in records}
    words = {word for record in records for word in re.findall(r"[a-z]+", record["prompt"].lower())}
    assert not words & set(facts.THINGS)
    assert generic_text(random.Random(1)) == generic_text(random.Random(1))
