"""IFEval: the checkers are lm-eval's own; what they need is said before anything is generated."""

import json
import os
import subprocess
import sys

import pytest

from eval import check_tasks
from eval.data import DataError, read_jsonl
from eval.judges import instructions, judge
from eval.judges.instructions import READ_PUNKT, require_checkers


def row(prompt: str = "Say something.", **asked) -> dict:
    names = [name.replace("__", ":") for name in asked]
    return {"key": 7, "prompt": prompt, "instruction_id_list": names, "kwargs": list(asked.values())}


def write(path, *rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def no_punkt(monkeypatch):
    """NLTK finds no data, and may not go and get any."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda name, quiet, print_error_to: print("no network", file=print_error_to))


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        ({"punctuation__no_comma": {}}, "One and two.", "One, two."),
        ({"detectable_format__number_bullet_lists": {"num_bullets": 2}}, "* a\n* b", "* a\n* b\n* c"),
        ({"keywords__existence": {"keywords": ["fig", "owl"]}}, "A fig for the owl.", "A fig."),
        ({"startend__end_checker": {"end_phrase": "The end."}}, "It is so. The end.", "The end. Or not."),
        ({"change_case__english_lowercase": {}}, "this is a sentence in english.", "This is a sentence in English."),
        ({"language__response_language": {"language": "de"}}, "Das ist ein deutscher Satz.", "This is an English one."),
    ],
)
def test_a_response_is_right_when_the_checkers_say_so(asked, right, wrong):
    assert judge("ifeval", [{"problem": row(**asked)}] * 3, [right, wrong, ""]) == [True, False, False]


def test_a_response_that_breaks_a_checker_is_wrong_and_the_others_are_judged(caplog):
    asked = {"problem": row(detectable_format__json_format={})}
    assert judge("ifeval", [asked] * 3, ['{"a": 1}', "[" * 3000, "no"]) == [True, False, False]
    assert "problem 7: a response counts as wrong: RecursionError" in caplog.text


def test_all_instructions_must_be_followed_and_strictly():
    both = {
        "problem": row(
            punctuation__no_comma={}, length_constraints__number_words=dict(num_words=3, relation="at least")
        )
    }
    responses = ["one two three", "one, two three", "one two", "Sure, here it is:\none two three"]
    assert judge("ifeval", [both] * 4, responses) == [True, False, False, False]


def test_the_language_is_guessed_the_same_each_time():
    short = {"problem": row(change_case__english_lowercase={})}
    assert len({tuple(judge("ifeval", [short] * 3, ["no", "on a pole", "an ion"])) for _ in range(10)}) == 1


def test_rows_of_the_hub_with_empty_arguments_are_read():
    given = row(detectable_format__number_bullet_lists={"num_bullets": 1, "keywords": None, "language": None})
    assert judge("ifeval", [given] * 2, ["* a", "a"]) == [True, False]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            row(keywords__rhyme={}),
            r"problem 2: unknown instruction 'keywords:rhyme'; lm-eval checks .*keywords:existence",
        ),
        (row(startend__quotation={"marks": 2}), r"problem 2: startend:quotation does not take \{'marks': 2\}"),
        ({**row(startend__quotation={}), "kwargs": []}, r"problem 2: 1 instructions, 0 `kwargs`"),
    ],
)
def test_a_row_that_cannot_be_checked_is_named_before_a_model_is_loaded(tmp_path, bad, message):
    path = write(tmp_path / "mine.jsonl", row(startend__quotation={}), bad)
    with pytest.raises(DataError, match=rf"mine\.jsonl, {message}"):
        check_tasks({"ifeval": path})


@pytest.mark.parametrize("name", READ_PUNKT)
def test_missing_data_is_said_before_a_model_is_loaded_by_the_rows_that_need_it(tmp_path, no_punkt, name):
    check_tasks({"ifeval": write(tmp_path / "plain.jsonl", row(startend__quotation={}))})
    path = write(tmp_path / "counts.jsonl", row(**{name: {}}))
    with pytest.raises(DataError, match=r"counts\.jsonl: .* `punkt_tab`, .* \(no network\)\. .*NLTK_DATA=FOLDER"):
        check_tasks({"ifeval": path})


def test_the_published_data_set_needs_it(no_punkt):
    with pytest.raises(DataError, match=r"google/IFEval: .*punkt_tab"):
        check_tasks({"ifeval": None})


def test_the_checkers_are_imported_without_a_download():
    """lm-eval downloads on import; a process whose downloader ends it imports and judges all the same."""
    code = (
        "import nltk\n"
        "def refuse(*a, **k): raise SystemExit('a download was tried')\n"
        "nltk.download = refuse; nltk.data.path[:] = []\n"
        "from eval.judges import instructions\n"
        "doc = {'prompt': 'Say a', 'instruction_id_list': ['punctuation:no_comma'], 'kwargs': [{}]}\n"
        "assert instructions.follows(doc, ['a', 'a, b']) == [True, False]\n"
        "import os; assert os.environ.get('LOCAL_RANK') == '3'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "LOCAL_RANK": "3"}, timeout=300)


def test_every_instruction_of_the_release_is_checked_or_said_to_need_data(benchmarks, no_punkt):
    rows = read_jsonl(benchmarks / "ifeval.jsonl", instructions.COLUMNS)
    assert len(rows) == 541
    checked = [each for each in rows if not set(READ_PUNKT) & set(each["instruction_id_list"])]
    assert len(checked) == 477
    require_checkers(checked, "ifeval.jsonl")
    with pytest.raises(DataError, match="punkt_tab"):
        require_checkers(rows, "ifeval.jsonl")
    verdicts = judge("ifeval", [{"problem": each} for each in checked], ["I will not, and that, alas, is all."] * 477)
    followed = {
        name for each, right in zip(checked, verdicts, strict=True) if right for name in each["instruction_id_list"]
    }
    assert 0 < sum(verdicts) < 100
    assert followed <= {
        "keywords:forbidden_words",
        "keywords:letter_frequency",
        "keywords:frequency",
        "length_constraints:number_words",
    }
