"""What the task files name with `!function`: filters, judges a problem, the mean over problems, EvalPlus's releases."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from eval.data import DataError, problems_from_file
from eval.judges import answers, choices, instructions
from eval.judges.code import judge_code
from eval.sandbox import permission

Samples = Sequence[Sequence[str]]
Documents = Sequence[Mapping[str, Any]]


def unchanged(responses: Iterable[Sequence[str]], docs: Documents) -> list[Sequence[str]]:
    """All responses as they are (lm-eval's default would keep the first alone)."""
    return list(responses)


def evalplus(responses: Samples, docs: Documents) -> list[list[bool]]:
    """Verdicts on all responses of a task, from one run of EvalPlus."""
    return judge_code([doc["problem"] for doc in docs], responses, "humaneval", permission.allowed())


def evalplus_mbpp(responses: Samples, docs: Documents) -> list[list[bool]]:
    """The same under EvalPlus's rules for the MBPP+ release."""
    return judge_code([doc["problem"] for doc in docs], responses, "mbpp", permission.allowed())


def numbers_equal(doc: Mapping[str, Any], results: list[list[str]]) -> dict[str, list[bool]]:
    gold = str(doc["answer"]).rsplit("####", 1)[-1]
    return {"correct": [answers.numbers_equal(gold, answer) for answer in results[0]]}


def math_verified(doc: Mapping[str, Any], results: list[list[str]]) -> dict[str, list[bool]]:
    return {"correct": answers.shared_verifier().right(str(doc["answer"]), results[0])}


def already_judged(doc: Mapping[str, Any], results: list[list[bool]]) -> dict[str, list[bool]]:
    return {"correct": list(results[0])}


def letters_equal(doc: Mapping[str, Any], results: list[list[str]]) -> dict[str, list[bool]]:
    return {"correct": choices.letters_equal(doc, results[0])}


def instructions_followed(doc: Mapping[str, Any], results: list[list[str]]) -> dict[str, list[bool]]:
    return {"correct": instructions.follows(doc, results[0])}


def mean_accuracy(verdicts: Sequence[Sequence[bool]]) -> float:
    """The mean over problems of the share of samples that are right."""
    return sum(sum(row) / len(row) for row in verdicts) / len(verdicts)


def humaneval_plus_release(**metadata: Any) -> dict[str, Dataset]:
    from evalplus.data.humaneval import HUMANEVAL_PLUS_VERSION

    return _release("HumanEvalPlus", HUMANEVAL_PLUS_VERSION, metadata)


def mbpp_plus_release(**metadata: Any) -> dict[str, Dataset]:
    from evalplus.data.mbpp import MBPP_PLUS_VERSION

    return _release("MbppPlus", MBPP_PLUS_VERSION, metadata)


def _release(name: str, version: str, metadata: Mapping[str, Any]) -> dict[str, Dataset]:
    from evalplus.data.utils import get_dataset_metadata, make_cache

    url, path = get_dataset_metadata(name, version, mini=False)
    try:
        make_cache(url, path)
    except OSError as error:
        raise DataError(f"{url}: could not be downloaded ({error}); give a local copy as the task's data") from error
    return problems_from_file(path, metadata["required"])
