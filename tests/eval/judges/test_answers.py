import threading

import pytest

from eval.judges import judge
from eval.judges.answers import MathVerifier, numbers_equal


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("1200", "$1,200.00", True),
        (" 18", "18.", True),
        ("-3", "−3", True),
        ("0.5", ".5", True),
        ("18", "180", False),
        ("18", "[invalid]", False),
        ("18", "", False),
    ],
)
def test_numbers_are_compared_as_numbers(gold, answer, right):
    assert numbers_equal(gold, answer) is right


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("7 * 2 = 14, so she has $18.", True),
        ("#### 18", True),
        ("18 apples, or 20", False),
        ("between 3-18", True),
        ("the result is -18", False),
        ("18.00 dollars", True),
        ("1,018", False),
        ("no number", False),
        ("", False),
    ],
)
def test_the_last_number_of_a_response_is_the_answer_of_gsm8k(response, right):
    assert judge("gsm8k", [{"answer": "18"}], [response]) == [right]


def test_tiny_math_is_judged_as_the_real_benchmarks_are():
    assert judge("tiny_gsm8k", [{"answer": "4"}] * 2, ["2 + 2 = 4\n#### 4", "#### 5"]) == [True, False]
    records = [{"answer": "\\frac{1}{2}"}] * 3
    responses = ["so \\boxed{0.5}", "so \\boxed{\\frac{2}{4}}", "so \\boxed{2}"]
    assert judge("tiny_math500", records, responses) == [True, True, False]


def test_math_verify_is_used_from_any_thread_and_survives_answers_that_never_end():
    verifier = MathVerifier(seconds=2)
    seen = []
    thread = threading.Thread(
        target=lambda: seen.extend(verifier.right("2", ["\\boxed{2}", "\\boxed{3}", "\\boxed{2}"]))
    )
    thread.start()
    thread.join()
    assert seen == [True, False, True]
    tower = "\\boxed{" + "9^{" * 6 + "9" + "}" * 6 + "}"
    assert verifier.right("2", [tower, "\\boxed{" * 50, "\\boxed{2}"]) == [False, False, True]
    verifier.close()
