"""Short exercises for pre-training: arithmetic facts, never a whole problem of a benchmark."""

import random


def arithmetic_drill(rng: random.Random, facts: int = 12) -> dict[str, str]:
    """Makes one record of arithmetic facts, one a line."""
    return {"prompt": "Compute.", "response": "\n".join(_fact(rng) for _ in range(facts))}


def _fact(rng: random.Random) -> str:
    sign = rng.choice("+++--**/")
    b = rng.randint(2, 9) if rng.random() < 0.8 else rng.randint(10, 25)
    if sign == "+":
        a = rng.randint(2, 60 - b)
        return f"{a}+{b}={a + b}"
    if sign == "-":
        a = rng.randint(b, 60) if rng.random() < 0.9 else rng.randint(1, b)
        return f"{a}-{b}={a - b}"
    b = rng.randint(2, 9)
    a = rng.randint(2, 9) if rng.random() < 0.8 else rng.randint(10, 12 + 39 // b)
    return f"{a}*{b}={a * b}" if sign == "*" else f"{a * b}/{b}={a}"
