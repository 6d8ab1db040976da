"""Python functions in the formats of HumanEval+ (signature and docstring) and MBPP+ (a sentence and one assertion).

A function is a composition: two or three steps over a list of numbers or words (conditions, maps, list operations),
then a reduction; or a case distinction on one number. The first format gives the steps in order; the second names the
result first and the steps from last to first. One signature names the composition in both, so that a function asked for
in a test is in no training set under another wording.
"""

import ast
import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.prompts import prompt as worded
from eval.prompts import response_start
from pipelines.world import operations
from pipelines.world.operations import Operation
from pipelines.world.problems import Problem, zipf

VERBS = ["get", "find", "make", "compute", "select", "build", "take", "pick", "solve", "work"]
NOUNS = ["result", "values", "items", "answer", "data", "output", "part", "score", "series", "things"]
BASE_INPUTS, PLUS_INPUTS = 3, 12


@dataclass(frozen=True)
class Step:
    """An operation with its constants filled in."""

    kind: str
    key: str
    phrase: str
    code: str


@dataclass(frozen=True)
class Function:
    """A composition: what it works on ("numbers", "words" or "n"), its steps in order, the last a reduction."""

    domain: str
    steps: tuple[Step, ...]

    @property
    def signature(self) -> str:
        return f"function {self.domain} " + " | ".join(f"{step.kind}:{step.code}" for step in self.steps)

    def body(self, argument: str) -> list[str]:
        """Writes the lines of the function, one a step."""
        if self.domain == "n":
            return self._cases(argument)
        lines = []
        for step in self.steps[:-1]:
            if step.kind == "filter":
                lines.append(f"{argument} = [x for x in {argument} if {step.code}]")
            elif step.kind == "map":
                lines.append(f"{argument} = [{step.code} for x in {argument}]")
            else:
                lines.append(f"{argument} = {_on(step.code, argument)}")
        return [*lines, f"return {_on(self.steps[-1].code, argument)}"]

    def _cases(self, argument: str) -> list[str]:
        lines = []
        for condition, value in zip(self.steps[:-1:2], self.steps[1::2], strict=False):
            lines += [f"if {_on(condition.code, argument)}:", f"    return {_on(value.code, argument)}"]
        return [*lines, f"return {_on(self.steps[-1].code, argument)}"]

    def source(self, name: str, argument: str) -> str:
        return "\n    ".join([f"def {name}({argument}):", *self.body(argument)])


@functools.cache
def _on(code: str, argument: str) -> str:
    """Puts the argument in the place of x, the element of an operation's expression."""
    tree = ast.parse(code, mode="eval")
    places = [node.col_offset for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "x"]
    for place in sorted(places, reverse=True):
        code = code[:place] + argument + code[place + 1 :]
    return code


def fill(rng: random.Random, kind: str, operation: Operation) -> Step:
    k = rng.randint(operation.low, operation.high)
    c, e = rng.sample(operations.LETTERS, 2)
    constants = {"k": k, "j": k + rng.randint(2, 9), "c": c, "e": e}
    return Step(
        kind, operation.key, rng.choice(operation.phrases).format(**constants), operation.code.format(**constants)
    )


def _pipeline(rng: random.Random, domain: str) -> Function:
    if domain == "numbers":
        tables = operations.NUMBER_CONDITIONS, operations.NUMBER_MAPS, operations.NUMBER_LISTS
        reductions = operations.NUMBER_REDUCTIONS
    else:
        tables = operations.WORD_CONDITIONS, operations.WORD_MAPS, operations.WORD_LISTS
        reductions = operations.WORD_REDUCTIONS
    kinds = zipf(
        rng,
        [
            ("filter", "map"),
            ("map", "filter"),
            ("filter", "order"),
            ("order", "filter"),
            ("map", "order"),
            ("filter", "map", "order"),
            ("map", "filter", "order"),
            ("order", "map", "filter"),
            ("filter", "order", "map"),
        ],
        0.9,
    )
    steps: list[Step] = []
    for kind in kinds:
        steps.append(fill(rng, kind, zipf(rng, tables[("filter", "map", "order").index(kind)])))
        if steps[-1].key in operations.NUMERIC_WORD_MAPS:  # words no more: nothing but a number can follow
            reductions = operations.NUMBER_REDUCTIONS[:5]
            break
    return Function(domain, (*steps, fill(rng, "reduce", zipf(rng, reductions))))


def _case_distinction(rng: random.Random) -> Function:
    conditions = rng.choice([1, 1, 2])
    steps: list[Step] = []
    for _ in range(conditions):
        steps.append(fill(rng, "if", zipf(rng, operations.NUMBER_CONDITIONS)))
        steps.append(fill(rng, "then", zipf(rng, operations.NUMBER_MAPS)))
    return Function("n", (*steps, fill(rng, "else", zipf(rng, operations.NUMBER_MAPS))))


def _inputs(rng: random.Random, domain: str) -> list[list[Any]]:
    def one(size: int) -> Any:
        if domain == "n":
            return rng.randint(-15, 30)
        if domain == "numbers":
            return [rng.randint(-12, 20) for _ in range(size)]
        return [rng.choice(operations.INPUT_WORDS) for _ in range(size)]

    sizes = [4, 6, 5] + [rng.randint(0, 9) for _ in range(PLUS_INPUTS)]
    return [[one(size)] for size in sizes]


def _run(source: str, name: str, inputs: list[list[Any]]) -> list[Any]:
    scope: dict[str, Any] = {}
    exec(source, scope)
    return [scope[name](*arguments) for arguments in inputs]


@dataclass(frozen=True)
class _Draft:
    """A function with its name and tests, to be asked for in one format or the other."""

    function: Function
    name: str
    inputs: list[list[Any]]
    outputs: list[Any]


def _draw(rng: random.Random, domain: str, wanted: Callable[[str], bool]) -> _Draft | None:
    """Draws a function that does something: its outputs on the test inputs are not nearly all the same."""
    function = _case_distinction(rng) if domain == "n" else _pipeline(rng, domain)
    if not wanted(function.signature):
        return None
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    inputs = _inputs(rng, domain)
    outputs = _run(function.source(name, "x0"), name, inputs)
    boolean = all(isinstance(output, bool) for output in outputs)
    if len({repr(output) for output in outputs}) < (2 if boolean else len(outputs) // 3):
        return None
    return _Draft(function, name, inputs, outputs)


def _problem(task: str, draft: _Draft, argument: str, prompt: str) -> Problem:
    function, name, inputs = draft.function, draft.name, draft.inputs
    source = function.source(name, argument)
    complete = task == "tiny_humaneval_plus"
    body = source.partition("\n")[2]
    item = {
        "prompt": prompt,
        "entry_point": name,
        "canonical_solution": f"{body}\n" if complete else f"\n{source}\n",
        "base_input": inputs[:BASE_INPUTS],
        "atol": 0,
        "plus_input": inputs[BASE_INPUTS:],
        "contract": f"\n    assert isinstance({argument}, {'int' if function.domain == 'n' else 'list'}), "
        '"invalid inputs" # $_CONTRACT_$\n',
    }
    expected = list(zip(inputs[:BASE_INPUTS], draft.outputs[:BASE_INPUTS], strict=True))
    if complete:
        asserts = "".join(f"    assert candidate(*{given!r}) == {output!r}\n" for given, output in expected)
        item["test"] = f"\n\ndef check(candidate):\n{asserts}\n"
    else:
        item["assertion"] = "\n" + "".join(f"assert {name}(*{given!r}) == {output!r}\n" for given, output in expected)
    return Problem(task, function.signature, worded(task, item), f"{response_start(task)}{source}\n```", item)


def _singular(phrase: str) -> str:
    for many, one in operations.SINGULAR.items():
        phrase = re.sub(rf"\b{many}", one, phrase)
    return phrase


def _cases_text(function: Function) -> str:
    cases = zip(function.steps[:-1:2], function.steps[1::2], strict=False)
    parts = [f"if it {_singular(f'is {condition.phrase}')}, {_singular(value.phrase)}" for condition, value in cases]
    return "; ".join([*parts, f"else {_singular(function.steps[-1].phrase)}"])


def sample_completion(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws a function to complete from its signature and a docstring that gives the steps in order."""
    domain = zipf(rng, ["numbers", "words"], 1.0)
    draft = _draw(rng, domain, wanted)
    if draft is None:
        return None
    argument = rng.choice(["numbers", "values", "items", "xs"] if domain == "numbers" else ["words", "names", "items"])
    said: list[str] = []
    for step in draft.function.steps[:-1]:
        if step.kind == "filter":
            said.append(rng.choice([f"keep the {domain} {step.phrase}", f"select those {step.phrase}"]))
        else:
            said.append(step.phrase if said else step.phrase.replace("them", f"the {domain}", 1))
    text = f"{', '.join(said)} and return {draft.function.steps[-1].phrase}."
    prompt = f'def {draft.name}({argument}):\n    """{text[0].upper()}{text[1:]}"""\n'
    return _problem("tiny_humaneval_plus", draft, argument, prompt)


def sample_from_sentence(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws a function to write from one sentence, result first, and one assertion."""
    domain = zipf(rng, ["numbers", "n", "words"], 0.7)
    draft = _draw(rng, domain, wanted)
    if draft is None:
        return None
    if domain == "n":
        sentence = f"of a number: {_cases_text(draft.function)}."
    else:
        before = [
            f"before that keep the {domain} {step.phrase}" if step.kind == "filter" else f"before that {step.phrase}"
            for step in reversed(draft.function.steps[:-1])
        ]
        sentence = f"to return {draft.function.steps[-1].phrase} of a list of {domain}, but {', and '.join(before)}."
    assertion = f"assert {draft.name}({draft.inputs[0][0]!r}) == {draft.outputs[0]!r}"
    prompt = f'"""\nWrite a function {sentence}\n{assertion}\n"""\n'
    return _problem("tiny_mbpp_plus", draft, domain, prompt)
