"""Five-way multiple choice in CommonsenseQA's format, about the facts of the world.

Five kinds of question, common ones first: the value of a thing, the thing with a value, the thing of a kind with a
value, the thing that is not of a kind, and a value of a thing that is only described.
"""

import random
from collections.abc import Callable, Sequence

from pipelines.world.facts import KINDS, THINGS, VALUES, fact, holders, state
from pipelines.world.problems import Problem, zipf

LABELS = "ABCDE"
ANSWER_LETTER = "Answer with the letter of the right choice."

ASK_VALUE = {
    "kind": ("What is the {}?", "What kind of thing is the {}?"),
    "place": ("Where is the {}?", "In which place is the {}?"),
    "colour": ("Which colour is the {}?", "What does the {} look like?"),
    "owner": ("Who has the {}?", "Whose is the {}?"),
}
WITH_VALUE = {
    "kind": "is a {}",
    "place": "is in the {}",
    "colour": "is {}",
    "owner": "belongs to the {}",
}

# (question, its concept, the facts that answer it, the right choice, wrong choices to draw from)
Asked = tuple[str, str, list[str], str, Sequence[str]]


def _relation(rng: random.Random) -> str:
    return rng.choice([relation for relation in VALUES if relation != "kind"])


def _others(relation: str, value: str) -> list[str]:
    return [other for other in VALUES[relation] if other != value]


def _value(rng: random.Random) -> Asked | None:
    thing, relation = rng.choice(THINGS), rng.choice(list(VALUES))
    value = fact(thing, relation)
    question = rng.choice(ASK_VALUE[relation]).format(thing)
    return question, thing, [state(thing, relation)], value, _others(relation, value)


def _thing(rng: random.Random) -> Asked | None:
    thing, relation = rng.choice(THINGS), rng.choice(list(VALUES))
    value = fact(thing, relation)
    wrong = [other for other in THINGS if fact(other, relation) != value]
    question = f"Which of these {WITH_VALUE[relation].format(value)}?"
    return question, value, [state(thing, relation)], thing, wrong


def _thing_of_a_kind(rng: random.Random) -> Asked | None:
    """The wrong choices are of the kind, or have the value."""
    thing, relation = rng.choice(THINGS), _relation(rng)
    kind, value = fact(thing, "kind"), fact(thing, relation)
    wrong = [other for other in THINGS if (fact(other, "kind") == kind) != (fact(other, relation) == value)]
    question = f"Which {kind} {WITH_VALUE[relation].format(value)}?"
    return question, kind, [state(thing, "kind"), state(thing, relation)], thing, wrong


def _odd_one_out(rng: random.Random) -> Asked | None:
    kind, thing = rng.choice(list(KINDS)), rng.choice(THINGS)
    if fact(thing, "kind") == kind:
        return None
    return f"Which of these is not a {kind}?", kind, [state(thing, "kind")], thing, KINDS[kind]


def _described(rng: random.Random) -> Asked | None:
    thing, (known, asked) = rng.choice(THINGS), rng.sample([name for name in VALUES if name != "kind"], 2)
    kind, value = fact(thing, "kind"), fact(thing, asked)
    if [other for other in holders(known, fact(thing, known)) if fact(other, "kind") == kind] != [thing]:
        return None
    described = f"{kind} that {WITH_VALUE[known].format(fact(thing, known))}"
    question = rng.choice(ASK_VALUE[asked]).format(described)
    return question, kind, [state(thing, known), state(thing, asked)], value, _others(asked, value)


ASK: list[Callable[[random.Random], Asked | None]] = [_value, _thing, _thing_of_a_kind, _odd_one_out, _described]


def sample_choice(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws one question with five choices; None also where there are not four wrong ones."""
    ask = zipf(rng, ASK)
    drawn = ask(rng)
    if drawn is None or len(drawn[4]) < 4:
        return None
    question, concept, facts, right, wrong = drawn
    texts = [right, *rng.sample(list(wrong), 4)]
    signature = f"choice {ask.__name__.removeprefix('_')} {' '.join(facts)} {' '.join(sorted(texts))}"
    if not wanted(signature):
        return None
    rng.shuffle(texts)
    letter = LABELS[texts.index(right)]
    listed = "\n".join(f"{label}. {text}" for label, text in zip(LABELS, texts, strict=True))
    return Problem(
        task="tiny_commonsense_qa",
        signature=signature,
        prompt=f"{question}\n{listed}\n{ANSWER_LETTER}",
        response="\n".join([*facts, f"The answer is {letter}."]),
        item={
            "question": question,
            "question_concept": concept,
            "choices": {"label": list(LABELS), "text": texts},
            "answerKey": letter,
        },
        answer=letter,
    )
