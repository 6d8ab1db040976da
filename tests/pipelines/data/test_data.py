import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from pipelines.data import load_records
from pipelines.data.formats import asserted_calls
from pipelines.data.source import DataSource
from tests.pipelines.small_world import BENCHMARKS, CODE_PREFIX, STEP_BY_STEP, needs_benchmarks, sums, write_jsonl

SFT_ROWS = [
    {
        "id": f"row-{n}",
        "source": source,
        "messages": [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": f"Answer {n}"}],
    }
    for n, source in enumerate(
        ["ai2-adapt-dev/personahub_math_v5_regen_149960", "ai2-adapt-dev/personahub_code_v2_34999"] * 3
    )
]
OPENMATH_ROWS = [
    {
        "problem": f"What is {n // 2} + 1?",
        "generated_solution": f"It is \\boxed{{{n // 2 + 1}}}.",
        "expected_answer": str(n // 2 + 1),
        "problem_source": "augmented_math",
    }
    for n in range(10)
]
SELF_OSS_RESPONSE = """[Reasoning]
Add one.

[Implementation]
Here is the code:

```python
def add_one(x: int) -> int:
    return x + 1
```

[Explanation]
It adds one.

[Tests]
To verify:

```python
assert add_one(1) == 2
assert add_one(-1) == 0
```

These cover both signs.
"""
SELF_OSS_ROW = {
    "id": 7,
    "sha1": "ab",
    "seed": "…",
    "concepts": ["addition"],
    "instruction": "Write a function that adds one.",
    "response": SELF_OSS_RESPONSE,
}


def jsonl(tmp_path, rows, name="data.jsonl", **settings) -> DataSource:
    return DataSource(str(write_jsonl(tmp_path / name, rows)), **settings)


def test_records_of_the_world_come_as_they_are(tmp_path):
    write_jsonl(tmp_path / "calibration" / "math.jsonl", sums(5))
    assert load_records(DataSource("world:calibration/math.jsonl"), tmp_path) == sums(5)


def test_shuffled_ranges_of_one_source_repeat_and_are_disjoint(tmp_path):
    first = jsonl(tmp_path, sums(50), shuffle_seed=3, limit=20)
    rest = jsonl(tmp_path, sums(50), shuffle_seed=3, skip=20)
    one, again, other = load_records(first), load_records(first), load_records(rest)
    assert one == again
    assert [row["id"] for row in one] != [f"sum-{n}" for n in range(20)]
    assert sorted(row["id"] for row in [*one, *other]) == sorted(row["id"] for row in sums(50))
    assert load_records(jsonl(tmp_path, sums(50), shuffle_seed=4, limit=20)) != one


def test_the_sft_mixture_is_filtered_by_its_source_column(tmp_path):
    source = jsonl(tmp_path, SFT_ROWS, format="messages", where={"source": ["ai2-adapt-dev/personahub_code_v2_34999"]})
    records = load_records(source)
    assert [(row["id"], row["prompt"], row["response"]) for row in records] == [
        (f"row-{n}", f"Question {n}", f"Answer {n}") for n in (1, 3, 5)
    ]
    assert "messages" not in records[0]


def test_a_filter_that_leaves_nothing_names_the_values_found(tmp_path):
    with pytest.raises(ValueError, match=r"no records left of 6 rows .*personahub_math_v5_regen_149960 \(3\)"):
        load_records(jsonl(tmp_path, SFT_ROWS, format="messages", where={"source": ["typo"]}))
    with pytest.raises(ValueError, match=r"data.jsonl:1: no column 'origin' to filter on; found \['id', 'messages'"):
        load_records(jsonl(tmp_path, SFT_ROWS, format="messages", where={"origin": ["x"]}))


def test_longer_conversations_keep_their_messages_up_to_the_last_answer(tmp_path):
    turns = [("system", "Be brief"), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"), ("assistant", "4")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"messages": [*messages, {"role": "user", "content": "thanks"}], "source": "x"}
    (record,) = load_records(jsonl(tmp_path, [row], format="messages"))
    assert record["messages"] == messages
    assert (record["prompt"], record["response"]) == ("2+2?", "4")


def test_openmathinstruct_keeps_one_solution_a_problem(tmp_path):
    records = load_records(jsonl(tmp_path, OPENMATH_ROWS, format="openmathinstruct2"))
    assert len(records) == 5
    assert records[1] == {
        "id": "data.jsonl:3",
        "prompt": "What is 1 + 1?" + STEP_BY_STEP,
        "response": "It is \\boxed{2}.",
        "task": "math500",
        "answer": "2",
        "problem": None,
    }


def test_self_oss_instruct_turns_its_tests_into_an_evalplus_problem(tmp_path):
    untested = {**SELF_OSS_ROW, "response": "def f(): pass", "instruction": "other"}
    (record,) = load_records(jsonl(tmp_path, [untested, SELF_OSS_ROW], format="self_oss_instruct"))
    assert record["prompt"].endswith('adds one.\nassert add_one(1) == 2\n"""\n```')
    assert record["response"].startswith(CODE_PREFIX + "def add_one(x: int)")
    assert record["task"] == "humaneval_plus"
    assert record["problem"]["entry_point"] == "add_one"
    assert record["problem"]["base_input"] == [[1], [-1]]


@pytest.mark.parametrize(
    ("tests", "arguments"),
    [
        ("assert f([1, 2], 'a') == 3", [[[1, 2], "a"]]),
        ("assert not f(1)\nassert f(-2) is None", [[1], [-2]]),
        ("import math\nassert f(0.5)", [[0.5]]),
        ("assert f((1, 2)) == 3", []),  # JSON would make a list of the tuple
        ("assert f(x) == 1", []),
        ("assert f(1) == 1\nassert g(1) == 1", []),
        ("assert abs(f(1) - 2) < 0.1", []),
        ("def test():\n    assert f(1) == 1", []),
        ("assert f(1) == ", []),
    ],
)
def test_asserted_calls_are_those_with_json_arguments(tests, arguments):
    assert [call.arguments for call in asserted_calls(tests)] == arguments


@pytest.mark.slow
def test_the_published_implementation_passes_its_own_tests_and_a_wrong_one_does_not(tmp_path):
    from eval.judges import judge

    (record,) = load_records(jsonl(tmp_path, [SELF_OSS_ROW], format="self_oss_instruct"))
    right = record["response"].removeprefix(CODE_PREFIX)
    assert judge("humaneval_plus", [record, record], [right, right.replace("+ 1", "+ 2")]) == [True, False]


@pytest.mark.parametrize("column", ["instruction", "prompt"])
def test_ultrafeedback_gives_unjudged_prompts(tmp_path, column):
    (record,) = load_records(jsonl(tmp_path, [{column: "Tell a joke", "models": []}], format="ultrafeedback"))
    assert (record["prompt"], record["response"], record["task"]) == ("Tell a joke", None, "chat")


def test_the_preferred_response_of_ultrafeedback_is_its_reference(tmp_path):
    chosen = [{"role": "user", "content": "Tell a joke"}, {"role": "assistant", "content": "Knock knock."}]
    row = {"prompt": "Tell a joke", "prompt_id": "ab", "chosen": chosen, "rejected": [], "messages": chosen}
    (record,) = load_records(jsonl(tmp_path, [row], format="ultrafeedback"))
    assert (record["id"], record["response"], record["task"]) == ("ab", "Knock knock.", "chat")


def test_plain_text_is_a_prompt_that_nobody_answered(tmp_path):
    rows = [{"text": "A page.\n", "url": "http://a", "timestamp": "2019"}, {"text": " ", "url": "b"}, {"text": "B"}]
    first, second = load_records(jsonl(tmp_path, rows, format="c4"))
    assert (first["id"], first["prompt"], first["response"], first["task"]) == ("http://a", "A page.\n", None, None)
    assert second["prompt"] == "B"


@needs_benchmarks
@pytest.mark.parametrize(
    ("file", "form", "count"),
    [
        ("gsm8k_train_1000.jsonl", "gsm8k", 1000),
        ("math500.jsonl", "math500", 500),
        ("HumanEvalPlus.jsonl.gz", "humaneval_plus", 164),
        ("MbppPlus.jsonl.gz", "mbpp_plus", 378),
    ],
)
def test_published_benchmarks_load(file, form, count):
    records = load_records(DataSource(str(BENCHMARKS / file), form))
    assert len(records) == count
    assert all(record["task"] == form and record["prompt"] for record in records)


@needs_benchmarks
@pytest.mark.slow
@pytest.mark.parametrize(("file", "form"), [("gsm8k_train_1000.jsonl", "gsm8k"), ("MbppPlus.jsonl.gz", "mbpp_plus")])
def test_prompts_are_worded_as_in_evaluation(file, form):
    from jinja2 import Template

    from eval.evaluation import task_config

    opener = gzip.open if file.endswith(".gz") else open
    with opener(BENCHMARKS / file, "rt") as lines:
        row = json.loads(next(iter(lines)))
    record = load_records(DataSource(str(BENCHMARKS / file), form, limit=1))[0]
    settings = task_config(form)
    assert record["prompt"] == Template(settings["doc_to_text"], keep_trailing_newline=True).render(**row)
    assert record["task"] != "mbpp_plus" or settings["gen_prefix"] == CODE_PREFIX


def test_folders_parquet_and_saved_datasets_read_alike(tmp_path):
    dataset = Dataset.from_list(OPENMATH_ROWS)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    dataset.select(range(4)).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet")
    dataset.select(range(4, 10)).to_parquet(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet")
    dataset.select(range(1)).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    DatasetDict({"train": dataset}).save_to_disk(tmp_path / "saved")
    with gzip.open(tmp_path / "data.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in OPENMATH_ROWS))
    expected = [row["prompt"] for row in load_records(jsonl(tmp_path, OPENMATH_ROWS, format="openmathinstruct2"))]
    for name in ("hub", "saved", "data.jsonl.gz"):
        source = DataSource(str(tmp_path / name), "openmathinstruct2")
        assert [row["prompt"] for row in load_records(source)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"bad.jsonl:2: not valid JSON"),
        ('{"prompt": "a"}\n[1]\n', r"bad.jsonl:2: expected a JSON object, found list"),
        ("", r"bad.jsonl:1: the data file is empty"),
        ("\n\n", r"the data file is empty"),
        ('{"prompt": "a"}\n{"question": "b"}\n', r"bad.jsonl:2: missing column 'prompt'; found \['question'\]"),
        ('{"prompt": 3}\n', r"bad.jsonl:1: malformed row: `prompt` is int"),
        ('{"prompt": " "}\n', r"bad.jsonl:1: malformed row: the prompt is empty"),
    ],
)
def test_malformed_files_are_refused_with_their_line(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_records(DataSource(str(path)))


def test_files_that_are_not_text_or_parquet_are_refused(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    for name, message in {
        "bad.jsonl": r"bad.jsonl:\d: not UTF-8",
        "bad.parquet": "not a readable parquet",
        "cut.jsonl.gz": r"cut.jsonl.gz:\d+: cannot be read",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_records(DataSource(str(tmp_path / name)))


def test_missing_sources_say_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl: no such file or folder"):
        load_records(DataSource(str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(ValueError, match="no world was given"):
        load_records(DataSource("world:train/math.jsonl"))
    with pytest.raises(ValueError, match=r"unknown data format 'csv'; valid: c4, gsm8k, "):
        load_records(DataSource("x", "csv"))
