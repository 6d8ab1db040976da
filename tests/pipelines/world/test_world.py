"""The tiny world: the same by seed, disjoint by construction, in the real formats, with answers that hold."""

import dataclasses
import gzip
import json
import random
import re
from pathlib import Path

import pytest
from math_verify import parse, verify
from transformers import AutoTokenizer

from pipelines.stages.world import WorldConfig
from pipelines.world import build_world
from pipelines.world.build import DOMAINS
from pipelines.world.problems import SPLITS, draw, split_of
from pipelines.world.tokenizer import ASSISTANT, END, PAD, USER
from tests.pipelines.small_world import CODE_PREFIX, read_jsonl
from tests.places import BENCHMARKS

SMALL = WorldConfig(vocabulary=512, pretrain=300, finetune=120, calibration=30, heldout=20, validation=15, test=30)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world")
    build_world(SMALL, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "tokenizer")


def files(world: Path) -> dict[str, bytes]:
    return {str(path.relative_to(world)): path.read_bytes() for path in sorted(world.rglob("*")) if path.is_file()}


def test_the_same_seed_makes_the_same_world_and_another_seed_another(world, tmp_path):
    build_world(SMALL, tmp_path / "again")
    assert files(tmp_path / "again") == files(world)
    build_world(dataclasses.replace(SMALL, seed=1), tmp_path / "other")
    other = files(tmp_path / "other")
    assert all(other[name] != content for name, content in files(world).items() if name.endswith(".jsonl"))


def test_more_held_out_text_leaves_all_other_files_as_they_are(world, tmp_path):
    build_world(dataclasses.replace(SMALL, heldout=2 * SMALL.heldout), tmp_path)
    changed = {name for name, content in files(tmp_path).items() if files(world)[name] != content}
    assert changed == {f"heldout/{domain}.jsonl" for domain in DOMAINS}


def test_counts_are_those_of_the_config(world):
    lines = {name: content.count(b"\n") for name, content in files(world).items() if name.endswith(".jsonl")}
    assert lines["train/pretrain.jsonl"] == SMALL.pretrain
    for domain, tasks in DOMAINS.items():
        assert lines[f"train/{domain}.jsonl"] == SMALL.finetune
        assert lines[f"calibration/{domain}.jsonl"] == SMALL.calibration
        assert lines[f"heldout/{domain}.jsonl"] == SMALL.heldout
        for task in tasks:
            assert lines[f"tasks/{task}.jsonl"] == SMALL.test
            assert lines[f"validation/{task}.jsonl"] == SMALL.validation


def test_no_problem_is_in_two_splits(world):
    split_by_folder = {"train": "train", "calibration": "calibration", "heldout": "heldout"}
    split_by_folder |= {"validation": "validation", "tasks": "test"}
    owners: dict[str, str] = {}
    prompts: dict[str, str] = {}
    for folder, split in split_by_folder.items():
        for path in (world / folder).glob("*.jsonl"):
            for line in read_jsonl(path):
                if line.get("task") == "" or path.stem == "generic":
                    continue  # a drill, or no problem at all
                text = line.get("prompt") or line.get("question") or line["problem"]
                text += str(line.get("choices", ""))
                assert owners.setdefault(line["signature"], split) == split, line
                assert prompts.setdefault(text, split) == split, line
                assert split_of(line["signature"], SMALL.seed) == split


def test_evaluated_and_calibrated_problems_are_all_different(world):
    for folder in ("tasks", "validation", "calibration", "heldout"):
        for path in (world / folder).glob("*.jsonl"):
            if path.stem == "generic":
                continue
            by_task: dict[str, list[str]] = {}
            for line in read_jsonl(path):
                by_task.setdefault(line.get("task", path.stem), []).append(line["signature"])
            assert all(len(set(signatures)) == len(signatures) for signatures in by_task.values()), path


def test_splits_get_their_shares():
    names = [split_of(f"problem {number}", 0) for number in range(20000)]
    for split, share in SPLITS.items():
        assert names.count(split) / len(names) == pytest.approx(share, abs=0.01)


def test_asking_for_more_problems_than_there_are_says_how_many_were_found():
    def two_problems(rng, wanted):
        problem = DOMAINS["math"]["tiny_gsm8k"](random.Random(rng.randrange(2)), lambda signature: True)
        return problem if problem and wanted(problem.signature) else None

    with pytest.raises(ValueError, match=r"found \d different train problems, wanted 30"):
        draw(two_problems, "train", 30, seed=0, stream="few", unique=True)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("tiny_gsm8k", "gsm8k_test.jsonl"),
        ("tiny_math500", "math500.jsonl"),
        ("tiny_humaneval_plus", "HumanEvalPlus.jsonl.gz"),
        ("tiny_mbpp_plus", "MbppPlus.jsonl.gz"),
        ("tiny_ifeval", "ifeval.jsonl"),
        ("tiny_commonsense_qa", "commonsense_qa_dev.jsonl"),
    ],
)
def test_benchmarks_have_the_keys_and_types_of_the_real_ones(world, task, name):
    if not (BENCHMARKS / name).is_file():
        pytest.skip(f"{BENCHMARKS / name} is not here: the real benchmark's format cannot be compared")
    with gzip.open(BENCHMARKS / name, "rt") if name.endswith(".gz") else (BENCHMARKS / name).open() as lines:
        real = json.loads(next(lines))
    for line in read_jsonl(world / "tasks" / f"{task}.jsonl"):
        assert set(line) == set(real) | {"signature"}
        assert all(type(line[key]) is type(value) for key, value in real.items() if key != "atol")


def test_word_problems_compute_what_they_say(world):
    for line in read_jsonl(world / "tasks" / "tiny_gsm8k.jsonl"):
        *steps, last = line["answer"].split("\n")
        assert last.startswith("#### ") and 2 <= len(steps) <= 5
        for step in steps:
            left, right = re.fullmatch(r"\D*(\d+[-+*/]\d+)=(\d+)\D*", step).groups()
            assert eval(left) == int(right)
        assert last == f"#### {right}"


def test_gold_answers_of_symbolic_problems_are_accepted_by_math_verify(world):
    for line in read_jsonl(world / "calibration" / "math.jsonl") + read_jsonl(world / "train" / "math.jsonl"):
        if line["task"] != "tiny_math500":
            continue
        gold = parse(f"\\boxed{{{line['answer']}}}")
        assert gold and verify(gold, parse(line["response"])), line
        assert not verify(gold, parse("\\boxed{12345}"))


def test_worked_lines_of_symbolic_problems_hold(world):
    for line in read_jsonl(world / "train" / "math.jsonl"):
        if line["task"] != "tiny_math500":
            continue
        for step in line["response"].split("\n")[:-1]:
            sides = [side.replace("^", "**") for side in step.split("=")]
            values = [eval(side) for side in sides if not re.search("[xy]", side)]
            assert all(value == pytest.approx(values[0]) for value in values), line


def test_canonical_solutions_pass_and_their_tests_tell_functions_apart(world):
    for task in ("tiny_humaneval_plus", "tiny_mbpp_plus"):
        for line in read_jsonl(world / "tasks" / f"{task}.jsonl"):
            scope: dict = {}
            exec(line["prompt"] + line["canonical_solution"], scope)
            if task == "tiny_mbpp_plus":
                exec(line["prompt"].strip().strip('"').strip().split("\n")[-1], scope)
                exec(line["assertion"], scope)
            else:
                exec(line["test"], scope)
                scope["check"](scope[line["entry_point"]])
            inputs = line["base_input"] + line["plus_input"]
            outputs = [scope[line["entry_point"]](*arguments) for arguments in inputs]
            assert len({repr(output) for output in outputs}) > 1
            json.dumps(outputs)


def test_code_responses_start_with_the_prefix_and_define_the_asked_function(world):
    records = read_jsonl(world / "calibration" / "code.jsonl")
    for line in records:
        assert line["response"].startswith(CODE_PREFIX) and line["response"].endswith("\n```")
        code = line["response"].removeprefix(CODE_PREFIX).removesuffix("\n```")
        assert f"def {line['problem']['entry_point']}(" in code
    assert {line["task"] for line in records} == {"tiny_humaneval_plus", "tiny_mbpp_plus"}


def test_evalplus_ids_are_of_the_kind_it_knows_and_outside_its_special_cases(world):
    assert read_jsonl(world / "tasks" / "tiny_humaneval_plus.jsonl")[0]["task_id"] == "HumanEval/0"
    assert all(
        int(line["task_id"].split("/")[1]) >= 1000 for line in read_jsonl(world / "tasks" / "tiny_mbpp_plus.jsonl")
    )


def test_tokenizer_gives_back_every_text(world, tokenizer):
    texts = [line[key] for line in read_jsonl(world / "train" / "pretrain.jsonl") for key in ("prompt", "response")]
    for text in [*texts, "naïve ∑ x² \t\n  tail  "]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_tokenizer_has_no_token_of_two_digits(tokenizer):
    assert not [token for token in tokenizer.get_vocab() if re.search(r"\d.*\d", token)]
    assert tokenizer.tokenize("1234") == list("1234")


def test_chat_template_and_special_tokens(tokenizer):
    turns = [{"role": "user", "content": "2+2"}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert asked == f"{USER}2+2{END}{ASSISTANT}"
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "4"}], tokenize=False)
    assert answered == f"{asked}4{END}"
    ids = tokenizer(answered)["input_ids"]
    assert [ids[0], ids[-1]] == tokenizer.convert_tokens_to_ids([USER, END])
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert len(tokenizer) <= SMALL.vocabulary


def test_every_example_fits_the_model(world, tokenizer):
    for path in (world / "train").glob("*.jsonl"):
        for line in read_jsonl(path):
            turns = [{"role": "user", "content": line["prompt"]}, {"role": "assistant", "content": line["response"]}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            assert len(tokenizer(text)["input_ids"]) <= SMALL.max_length
