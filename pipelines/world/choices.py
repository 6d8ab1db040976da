"""Five-way multiple choice in CommonsenseQA's format, about the facts of the world.

Two kinds of question, the common one first: the value of a thing, and the thing with a value. Choices stand in order,
those of a number from the least, others by the alphabet: a model of this size knows facts but does not learn to look up
the letter of a word (it stayed at chance in six trials of other forms), and from the order it can tell where a value
stands, for certain or nearly so. All letters are right equally often.
"""

import random
from collections.abc import Callable

from eval.prompts import prompt
from pipelines.world.facts import THINGS, VALUES, fact, state
from pipelines.world.problems import Problem, zipf

LABELS = "ABCDE"

ASK_VALUE = {
    "number": ("How many {} are there?", "What is the number of {}?"),
    "owner": ("Who has the {}?", "Who is the owner of the {}?"),
    "price": ("How many dollars are the {} each?", "What is the price of the {}?"),
}
ASK_THING = {
    "number": "Of which of these are there {}?",
    "owner": "Which of these does {} have?",
    "price": "Which of these are {} dollars each?",
}

# (question, its concept, the fact that answers it, the right choice, wrong choices to draw from)
Asked = tuple[str, str, str, str, list[str]]


def _value(rng: random.Random) -> Asked:
    thing, relation = rng.choice(THINGS), rng.choice(list(VALUES))
    value = fact(thing, relation)
    question = rng.choice(ASK_VALUE[relation]).format(thing)
    return question, thing, state(thing, relation), value, [other for other in VALUES[relation] if other != value]


def _thing(rng: random.Random) -> Asked:
    thing, relation = rng.choice(THINGS), rng.choice(list(VALUES))
    value = fact(thing, relation)
    wrong = [other for other in THINGS if fact(other, relation) != value]
    return ASK_THING[relation].format(value), value, state(thing, relation), thing, wrong


ASK: list[Callable[[random.Random], Asked]] = [_value, _thing]


def sample_choice(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws one question with five choices."""
    ask = zipf(rng, ASK)
    question, concept, known, right, wrong = ask(rng)
    texts = sorted([right, *rng.sample(wrong, 4)])
    signature = f"choice {ask.__name__.removeprefix('_')} {known} {question} {' '.join(texts)}"
    if not wanted(signature):
        return None
    letter = LABELS[texts.index(right)]
    item = {
        "question": question,
        "question_concept": concept,
        "choices": {"label": list(LABELS), "text": texts},
        "answerKey": letter,
    }
    return Problem(
        task="tiny_commonsense_qa",
        signature=signature,
        prompt=prompt("tiny_commonsense_qa", item),
        response=f"{known}\nThe answer is {letter}.",
        item=item,
        answer=letter,
    )
