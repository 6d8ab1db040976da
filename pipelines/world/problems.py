"""A problem of the tiny world, and the hash that sends it to exactly one split.

A problem's `signature` is what it asks for, without names and phrasing: operations and numbers of a word problem, the
expression of a symbolic one, the composition of operations of a function, the instructions of a request, the facts and
choices of a question. sha256(seed, signature) picks the split, so that no two splits can share a problem, however often
a generator draws it.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

SPLITS: dict[str, float] = {"train": 0.70, "calibration": 0.10, "heldout": 0.04, "validation": 0.08, "test": 0.08}

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Problem:
    """One problem with its reference response.

    task: task whose judge decides correctness.
    signature: what is asked, names and phrasing aside.
    prompt: the user turn.
    response: the reference assistant turn.
    item: the problem in the format of the benchmark (without its number there, which depends on the file it lands in).
    answer: the gold answer of a math problem, the letter of a multiple choice.
    """

    task: str
    signature: str
    prompt: str
    response: str
    item: dict[str, Any]
    answer: str | None = None


# Draws a problem, or None when it is not wanted: a signature is judged before the work of writing the problem is done.
Sampler = Callable[[random.Random, Callable[[str], bool]], Problem | None]


def split_of(signature: str, seed: int) -> str:
    """Names the split that owns a signature."""
    position = int.from_bytes(hashlib.sha256(f"{seed}|{signature}".encode()).digest()[:8], "big") / 2**64
    for name, share in SPLITS.items():
        position -= share
        if position < 0:
            return name
    return next(reversed(SPLITS))


def draw(sampler: Sampler, split: str, count: int, *, seed: int, stream: str, unique: bool) -> list[Problem]:
    """Draws `count` problems of one split; the same arguments give the same problems.

    stream: name of the random stream, so that two files of one split differ.
    unique: no signature twice (every evaluated or calibrated problem is a different one).

    Raises:
        ValueError: the generator has too few different problems for `count` of them.
    """
    rng = random.Random(f"{seed}|{stream}|{split}")
    problems: list[Problem] = []
    seen: set[str] = set()

    def wanted(signature: str) -> bool:
        return split_of(signature, seed) == split and not (unique and signature in seen)

    for _ in range(200 * count + 2000):
        if len(problems) == count:
            return problems
        if problem := sampler(rng, wanted):
            seen.add(problem.signature)
            problems.append(problem)
    raise ValueError(
        f"world: {stream}: found {len(problems)} different {split} problems, wanted {count}; ask for fewer"
    )


def zipf(rng: random.Random, options: Sequence[Choice], exponent: float = 0.8) -> Choice:
    """Draws option i with weight 1 / (i + 1)^exponent: common ones are learned early, rare ones stay hard."""
    return rng.choices(options, weights=[(rank + 1) ** -exponent for rank in range(len(options))])[0]
