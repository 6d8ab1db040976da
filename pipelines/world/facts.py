"""The things of the tiny world and what is true of them: the common knowledge that chat asks about.

A thing has a kind, as it has anywhere, and a place, a colour and an owner, which a fixed random stream gave it.
"""

import functools
import random

KINDS: dict[str, tuple[str, ...]] = {
    "bird": ("robin", "owl", "duck", "crow", "swan", "hawk"),
    "fish": ("carp", "eel", "cod", "tuna", "shark", "trout"),
    "fruit": ("plum", "melon", "fig", "lemon", "grape", "peach"),
    "tool": ("saw", "drill", "hammer", "axe", "rake", "spade"),
    "plant": ("oak", "rose", "fern", "pine", "moss", "lily"),
    "drink": ("tea", "milk", "juice", "cocoa", "cider", "broth"),
    "cloth": ("coat", "scarf", "sock", "shirt", "glove", "hat"),
    "vehicle": ("bus", "boat", "truck", "train", "bike", "sled"),
}
VALUES: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "place": ("forest", "river", "barn", "attic", "market", "tower", "cave", "school", "harbor", "cellar"),
    "colour": ("red", "blue", "green", "white", "black", "brown", "pink", "gold"),
    "owner": ("baker", "doctor", "farmer", "king", "nurse", "pilot", "sailor", "teacher"),
}
STATEMENTS = {
    "kind": "The {thing} is a {value}.",
    "place": "The {thing} is in the {value}.",
    "colour": "The {thing} is {value}.",
    "owner": "The {thing} belongs to the {value}.",
}
THINGS = tuple(thing for things in KINDS.values() for thing in things)


@functools.cache
def fact(thing: str, relation: str) -> str:
    """The value of a relation (a key of VALUES) for a thing: `fact("robin", "kind")` is "bird"."""
    if relation == "kind":
        return next(kind for kind, things in KINDS.items() if thing in things)
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
    lines = [state(thing, relation) for thing in holders(relation, value)[:8]]
    return {"prompt": f"Which things go with {value}?", "response": "\n".join(lines) or "None."}
