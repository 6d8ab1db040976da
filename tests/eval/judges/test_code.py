"""Programs are found in responses, judged once each, and a lost judge costs one sample."""

import pytest

from eval.judges import evalplus, judge
from eval.judges.code import extract_code
from eval.sandbox import child
from tests.eval.judges.problems import DOUBLE, RIGHT


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (RIGHT + "```\nand prose", "import math\n\n\n\n" + RIGHT),
        ("    return x + x\n```", DOUBLE["prompt"] + "    return x + x\n"),
        ("```python\n" + RIGHT + "```", "import math\n\n\n\n" + RIGHT),
        ("Here it is:\n```python\n" + RIGHT + "```\n", "import math\n\n\n\n" + RIGHT),
        ("", DOUBLE["prompt"]),
    ],
)
def test_code_is_what_stands_before_the_closing_fence(response, code):
    assert extract_code(response, DOUBLE) == code


def test_problems_share_one_run_and_equal_responses_one_verdict():
    same_id = {
        **DOUBLE,
        "entry_point": "triple",
        "prompt": "def triple(x):\n",
        "canonical_solution": "    return 3 * x\n",
    }
    records = [{"problem": DOUBLE}, {"problem": same_id}, {"problem": DOUBLE}, {"problem": DOUBLE}]
    passes_base_only = "def double(x):\n    return 2 * abs(x)\n"
    responses = [RIGHT, "def triple(x):\n    return x + x + x\n```", RIGHT, passes_base_only]
    assert judge("tiny_mbpp_plus", records, responses) == [True, True, True, False]


def test_a_judge_that_does_not_run_is_an_error_and_not_a_row_of_wrong_answers(monkeypatch):
    broken = {**DOUBLE, "canonical_solution": "    raise SystemExit\n"}
    with pytest.raises(evalplus.JudgeError, match="own solution"):
        judge("tiny_humaneval_plus", [{"problem": broken}], [RIGHT])


@pytest.mark.slow
def test_a_sample_that_the_judge_is_lost_with_costs_that_sample_alone():
    """A set of integers whose hashes collide takes hours to build: an alarm ends the judge, another goes on."""
    collide = (
        "import json, posix\nitems = [n * (2**61 - 1) for n in range(1, 300_000)]\n"
        "data = b'true\\n[' + json.dumps({'s': items}).encode() + b',0]\\n'\n"
        "for n in range(3, 64):\n    try:\n        rest = data\n"
        "        while rest: rest = rest[posix.write(n, rest):]\n"
        "    except OSError: pass\n" + RIGHT
    )
    wrong = RIGHT.replace("2", "3")
    assert judge("tiny_humaneval_plus", [{"problem": DOUBLE}] * 3, [RIGHT, collide, wrong]) == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("solution", ["    return 'x' * 2**28\n", "    return [0] * 2**30\n"])
def test_no_program_passes_where_the_right_answer_is_too_large(solution, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vast = {**DOUBLE, "canonical_solution": solution}
    for _ in range(2):  # computed, and as kept
        assert judge("tiny_humaneval_plus", [{"problem": vast}], [RIGHT]) == [False]


def test_a_response_of_many_empty_lines_is_read_in_no_time():
    assert extract_code("\n" * 200_000 + "x", DOUBLE).endswith("\n" * 200_000 + "x")


def test_the_environment_of_a_child_holds_no_secret(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "LD_PRELOAD", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in child.clean_environment().values()
