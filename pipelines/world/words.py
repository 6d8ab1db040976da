"""Word problems in GSM8K's format: an opening, up to two changes and a question, solved step by step to `#### n`.

Numbers stay at or below 50 and every intermediate result is a whole number; a distracting sentence and rare operations
(dozens, halves, packs) keep some of them hard.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from eval.prompts import prompt
from pipelines.world.problems import Problem, zipf

LIMIT = 50
PEOPLE = [
    ("Tom", "he"), ("Ann", "she"), ("Ben", "he"), ("Mia", "she"), ("Leo", "he"), ("Eva", "she"), ("Sam", "he"),
    ("Zoe", "she"), ("Max", "he"), ("Ida", "she"), ("Jack", "he"), ("Lucy", "she"), ("Omar", "he"), ("Nina", "she"),
    ("Paul", "he"), ("Rosa", "she"),
]  # fmt: skip
ITEMS = [
    "apples", "pens", "books", "coins", "cards", "eggs", "stamps", "shells", "cookies", "marbles", "pears", "cups",
    "balls", "toys", "stickers", "roses",
]  # fmt: skip
DISTRACTIONS = [
    "{F} is {d} years old.",
    "{F} has {d} cats.",
    "It is {d} miles to the shop.",
    "{N} lives at number {d}.",
]


@dataclass
class _Story:
    """A problem being told: the running value, what was said, what was computed."""

    rng: random.Random
    value: int = 0
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.name, self.pronoun), (self.friend, _) = self.rng.sample(PEOPLE, 2)
        self.item = self.rng.choice(ITEMS)

    def say(self, *phrasings: str, **numbers: int) -> None:
        text = self.rng.choice(phrasings).format(
            N=self.name, P=self.pronoun.capitalize(), p=self.pronoun, F=self.friend, items=self.item, **numbers
        )
        self.sentences.append(text)

    def step(self, left: int, operator: str, right: int, says: str = "Now {}.") -> None:
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operator]
        self.steps.append(says.format(f"{left}{operator}{right}={result}"))
        self.value = result

    def amount(self, high: int) -> int | None:
        """Draws what is gained or lost: mostly one digit, sometimes two."""
        return self.between(2, min(high, 9 if self.rng.random() < 0.9 else 20))

    def between(self, low: int, high: int) -> int | None:
        return self.rng.randint(low, high) if low <= high else None


def _open(story: _Story) -> None:
    kind = zipf(story.rng, ["has", "boxes", "colours", "daily", "dozen"])
    between = story.rng.randint
    story.operations.append(kind)
    if kind == "has":
        story.value = a = between(5, 30)
        story.operations.append(str(a))
        story.say("{N} has {a} {items}.", "There are {a} {items} on the table of {N}.", "{N} owns {a} {items}.", a=a)
    elif kind == "colours":
        a, b = between(3, 15), between(3, 15)
        story.operations.append(f"{a},{b}")
        story.say(
            "{N} has {a} red {items} and {b} blue {items}.", "{N} has {a} old {items} and {b} new {items}.", a=a, b=b
        )
        story.step(a, "+", b, f"{story.name} has {{}} {story.item}.")
    elif kind == "dozen":
        a = between(2, 4)
        story.operations.append(str(a))
        story.say("{N} has {a} dozen {items}.", "{N} buys {a} dozen {items}.", a=a)
        story.step(a, "*", 12, f"{story.name} has {{}} {story.item}.")
    else:
        a, b = between(2, 7), between(2, 7)
        story.operations.append(f"{a},{b}")
        if kind == "boxes":
            story.say(
                "{N} has {a} boxes with {b} {items} in each box.",
                "{N} has {a} bags. Each bag holds {b} {items}.",
                "There are {b} {items} in each of the {a} boxes of {N}.",
                a=a,
                b=b,
            )
        else:
            story.say("{N} finds {b} {items} a day for {a} days.", "For {a} days {N} buys {b} {items} a day.", a=a, b=b)
        story.step(a, "*", b, f"{story.name} has {{}} {story.item}.")


def _change(story: _Story) -> None:
    """Changes the running value, or leaves it when the drawn operation does not fit."""
    kind = zipf(story.rng, ["lose", "gain", "double", "half", "packs"])
    value = story.value
    if kind == "lose" and (b := story.amount(value - 2)):
        story.say(
            "{P} gives {b} {items} to {F}.",
            "{P} loses {b} of them.",
            "Then {p} sells {b}.",
            "{F} takes {b} {items}.",
            b=b,
        )
        story.step(value, "-", b)
    elif kind == "gain" and (b := story.amount(LIMIT - value)):
        story.say(
            "{F} gives {N} {b} more.",
            "{P} finds {b} more {items}.",
            "Then {p} buys {b} {items}.",
            "{P} gets {b} more.",
            b=b,
        )
        story.step(value, "+", b)
    elif kind == "double" and 2 * value <= LIMIT and (b := 2):
        story.say("Then the number of {items} doubles.", "{P} gets as many again from {F}.")
        story.step(value, "*", 2)
    elif kind == "half" and value % 2 == 0 and value > 4 and (b := 2):
        story.say("{P} gives half of them to {F}.", "{P} loses half of the {items}.")
        story.step(value, "/", 2)
    elif kind == "packs" and (b := story.between(2, 5)) and (c := story.between(2, min((LIMIT - value) // b, 9))):
        story.say("{P} buys {b} packs of {c} {items}.", "{F} gives {N} {b} packs of {c} {items}.", b=b, c=c)
        story.step(b, "*", c, "The packs hold {}.")
        story.step(value, "+", b * c)
        b = 10 * b + c
    else:
        return
    story.operations.append(f"{kind}:{b}")


def _close(story: _Story) -> None:
    kind = zipf(story.rng, ["left", "price", "more", "share", "together", "times", "fewer"])
    value = story.value
    divisors = [k for k in range(2, 10) if value % k == 0 and value > k]
    b = 0
    if kind == "price" and (b := story.between(2, min(9, LIMIT // max(value, 1))) or 0):
        story.say(
            "{P} sells them all for {b} dollars each. How many dollars does {p} get?",
            "Each of them is worth {b} dollars. How many dollars is that?",
            b=b,
        )
        story.step(value, "*", b, "That is {} dollars.")
    elif kind == "share" and divisors:
        b = story.rng.choice(divisors)
        story.say(
            "{P} shares them equally among {b} friends. How many does each friend get?",
            "{P} puts them into {b} equal piles. How many {items} are in a pile?",
            b=b,
        )
        story.step(value, "/", b, "Each has {}.")
    elif kind in ("more", "together") and (b := story.amount(LIMIT - value) or 0):
        question = "How many does {F} have?" if kind == "more" else "How many do they have together?"
        story.say(f"{{F}} has {{b}} more {{items}} than {{N}}. {question}", b=b)
        story.step(value, "+", b, f"{story.friend} has {{}}.")
        if kind == "together":
            story.step(value, "+", story.value, "Together {}.")
    elif kind == "fewer" and (b := story.amount(value - 1) or 0):
        story.say("{F} has {b} fewer {items} than {N}. How many does {F} have?", b=b)
        story.step(value, "-", b, f"{story.friend} has {{}}.")
    elif kind == "times" and (b := story.between(2, min(5, LIMIT // max(value, 1))) or 0):
        story.say("{F} has {b} times as many {items}. How many does {F} have?", b=b)
        story.step(value, "*", b, f"{story.friend} has {{}}.")
    else:
        kind = "left"
        story.say(
            "How many {items} does {N} have now?", "How many {items} are there now?", "How many are left for {N}?"
        )
    story.operations.append(f"{kind}:{b}")


def sample_word_problem(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws one word problem of two to five computed steps."""
    story = _Story(rng)
    _open(story)
    for _ in range(zipf(rng, [1, 2, 0, 3], 1.4)):
        _change(story)
    if rng.random() < 0.15:
        story.say(*DISTRACTIONS, d=rng.randint(2, 40))
    _close(story)
    signature = "word " + " ".join(story.operations)
    if not 2 <= len(story.steps) <= 5 or not wanted(signature):
        return None
    question = " ".join(story.sentences)
    answer = "\n".join([*story.steps, f"#### {story.value}"])
    item = {"question": question, "answer": answer}
    return Problem(
        task="tiny_gsm8k",
        signature=signature,
        prompt=prompt("tiny_gsm8k", item),
        response=answer,
        item=item,
        answer=str(story.value),
    )
