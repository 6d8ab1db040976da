"""Multiple choice: the letter that an lm-eval filter found in the response, compared with the right one."""

from collections.abc import Mapping, Sequence
from typing import Any


def letters_equal(doc: Mapping[str, Any], letters: Sequence[str]) -> list[bool]:
    """Which letters are the right one: `answerKey` of CommonsenseQA's rows, `answer` of our records."""
    gold = str(doc["answerKey"] if "answerKey" in doc else doc["answer"])
    return [letter == gold for letter in letters]
