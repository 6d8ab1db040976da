"""Short exercises for pre-training: arithmetic facts and single operations, never a whole problem of a benchmark."""

import random

from pipelines.world import operations
from pipelines.world.functions import fill
from pipelines.world.problems import CODE_PREFIX


def arithmetic_drill(rng: random.Random, facts: int = 12) -> dict[str, str]:
    """Makes one record of arithmetic facts, a line each."""
    return {"prompt": "Compute.", "response": "\n".join(_fact(rng) for _ in range(facts))}


def _fact(rng: random.Random) -> str:
    sign = rng.choice("++--**/")
    if sign == "*":
        a, b = (
            (rng.randint(2, 12), rng.randint(2, 9)) if rng.random() < 0.7 else (rng.randint(10, 49), rng.randint(2, 5))
        )
        return f"{a}*{b}={a * b}"
    if sign == "/":
        a, b = rng.randint(2, 20), rng.randint(2, 9)
        return f"{a * b}/{b}={a}"
    a, b = rng.randint(1, 80), rng.randint(1, 50)
    if sign == "-" and rng.random() < 0.8:
        a, b = max(a, b), min(a, b)
    return f"{a}+{b}={a + b}" if sign == "+" else f"{a}-{b}={a - b}"


def code_drill(rng: random.Random, lines: int = 5) -> dict[str, str]:
    """Makes one record of single operations on a list, an expression each."""
    tables = {
        "filter": operations.NUMBER_CONDITIONS + operations.WORD_CONDITIONS,
        "map": operations.NUMBER_MAPS + operations.WORD_MAPS,
        "order": operations.NUMBER_LISTS + operations.WORD_LISTS,
        "reduce": operations.NUMBER_REDUCTIONS + operations.WORD_REDUCTIONS,
    }
    steps = [fill(rng, kind, rng.choice(tables[kind])) for kind in rng.choices(list(tables), k=lines)]
    code = "\n".join(f"# {step.phrase}\n{step.code}" for step in steps)
    return {"prompt": "Write operations on x.", "response": f"{CODE_PREFIX}{code}\n```"}
