"""The things of the tiny world and what is true of them: the common knowledge that chat asks about.

A thing has an owner, a number and a price, which a fixed random stream gave it. All these words are single tokens of
the tokenizer, which saw the texts of math and code alone: a model of this size looks up tokens, not words.
"""

import functools
import random

THINGS = (
    "apples", "balls", "books", "boxes", "cards", "coins", "cups", "eggs", "letters", "marbles", "pears",
    "pens", "roses", "shells", "stamps", "stickers", "toys",
)  # fmt: skip
VALUES: dict[str, tuple[str, ...]] = {
    "number": ("2", "3", "4", "5", "6", "7", "8", "9"),
    "owner": ("Ann", "Ben", "Eva", "Leo", "Max", "Mia", "Sam", "Tom"),
    "price": ("2", "3", "4", "5", "6", "7", "8", "9"),
}
STATEMENTS = {
    "number": "There are {value} {thing}.",
    "owner": "{value} has the {thing}.",
    "price": "The {thing} are {value} dollars each.",
}


@functools.cache
def fact(thing: str, relation: str) -> str:
    """The value of a relation (a key of VALUES) for a thing, such as the owner of the cups."""
    return random.Random(f"{thing}|{relation}").choice(VALUES[relation])


def state(thing: str, relation: str) -> str:
    """Writes a fact as a sentence."""
    return STATEMENTS[relation].format(thing=thing, value=fact(thing, relation))


def holders(relation: str, value: str) -> list[str]:
    """The things that have a value."""
    return [thing for thing in THINGS if fact(thing, relation) == value]


def facts_told(rng: random.Random) -> dict[str, str]:
    """Makes one record that states facts: all of a few things, or the things that share a value."""
    if rng.random() < 0.7:
        things = rng.sample(THINGS, 2)
        lines = [state(thing, relation) for thing in things for relation in rng.sample(list(VALUES), len(VALUES))]
        return {"prompt": f"What do you know about the {things[0]} and the {things[1]}?", "response": "\n".join(lines)}
    relation = rng.choice(list(VALUES))
    value = rng.choice(VALUES[relation])
    lines = [state(thing, relation) for thing in holders(relation, value)]
    return {"prompt": f"For which things is the {relation} {value}?", "response": "\n".join(lines) or "None."}
