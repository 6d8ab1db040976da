"""Verdicts are plain EvalPlus's: right, wrong and oddly typed programs, judged by us and by EvalPlus itself.

The programs are mutants of the releases' own solutions, so that EvalPlus may run them as it always does, unguarded.
"""

import ast
import copy
import json
import os
import random
import subprocess
import sys

import pytest

from eval.data import read_jsonl
from eval.judges import evalplus

FILES = {"humaneval": "HumanEvalPlus.jsonl.gz", "mbpp": "MbppPlus.jsonl.gz"}
SECONDS = 4.0  # a test; mutants that never end are few, and a busy machine makes shorter limits a matter of luck

# What a right function's result is turned into: equal to it or not, of its type or not.
WRAPPERS = {
    "the same": "r",
    "a list": "list(r)",
    "a tuple": "tuple(r)",
    "a set": "set(r)",
    "a generator": "(x for x in r)",
    "an iterator": "iter(r)",
    "a float": "float(r)",
    "an int": "int(r)",
    "text": "str(r)",
    "a NumPy scalar": "numpy.array(r)[()]",
    "an array": "numpy.array(r)",
    "an array of one": "numpy.array([r])",
    "a double": "numpy.float64(r)",
    "a fraction": "fractions.Fraction(r)",
    "a decimal": "decimal.Decimal(r)",
    "a complex": "complex(r)",
    "a counter": "collections.Counter(r)",
    "an ordered dict": "collections.OrderedDict(r)",
    "the keys": "r.keys()",
    "a deque": "collections.deque(r)",
    "a list of another class": "type('L', (list,), {})(r)",
    "a float of another class": "type('F', (float,), {})(r)",
    "a text of another class": "type('S', (str,), {})(r)",
    "a named tuple": "collections.namedtuple('N', [f'f{i}' for i in range(len(r))])(*r)",
    "nearly": "r + 5e-7 if isinstance(r, float) else [x + 5e-7 for x in r]",
    "off by a little": "r + 5e-5 if isinstance(r, float) else [x + 5e-5 for x in r]",
    "not a number": "float('nan')",
    "negated": "not r",
    "nothing": "None",
    "an object": "object()",
    "reversed": "r[::-1]",
    "nested": "[r]",
}


def wrapped(code: str, entry_point: str, expression: str) -> str:
    return (
        f"{code}\nimport collections, decimal, fractions, numpy\n_own = {entry_point}\n"
        f"def {entry_point}(*arguments):\n    r = _own(*arguments)\n    return {expression}\n"
    )


class Mutation(ast.NodeTransformer):
    """Changes the node of a chosen number: an operator, a comparison, a constant, a returned value."""

    def __init__(self, chosen: int) -> None:
        self.left = chosen

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        changed = self._changed(node)
        if changed is None:
            return node
        self.left -= 1
        return ast.copy_location(changed, node) if self.left == -1 else node

    @staticmethod
    def _changed(node: ast.AST) -> ast.AST | None:
        if isinstance(node, ast.Compare):
            swap = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
            other = swap.get(type(node.ops[0]))
            return other and ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)
        if isinstance(node, ast.BinOp):
            swap = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.FloorDiv, ast.Mod: ast.Mult}
            other = swap.get(type(node.op))
            return other and ast.BinOp(node.left, other(), node.right)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return ast.Constant(node.value + 1)
        if isinstance(node, ast.Constant) and type(node.value) is bool:
            return ast.Constant(not node.value)
        return None


def mutants(code: str, draw: random.Random, count: int) -> list[str]:
    tree = ast.parse(code)
    found = []
    for chosen in draw.sample(range(24), 24):
        mutation = Mutation(chosen)
        changed = ast.fix_missing_locations(mutation.visit(copy.deepcopy(tree)))
        if mutation.left < 0 and len(found) < count:
            found.append(ast.unparse(changed))
    return found


def plain(folder, rules: str, problems: list[dict], samples: list[tuple[str, str]]) -> list[bool]:
    """EvalPlus's own verdicts, from a run of its own."""
    data, file = folder / "problems.jsonl", folder / "samples.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    file.write_text("".join(json.dumps({"task_id": task, "solution": code}) + "\n" for task, code in samples))
    program = (
        "import sys, types; m = types.ModuleType('datasets'); m.load_dataset = None; sys.modules['datasets'] = m\n"
        "from evalplus.evaluate import evaluate\n"
        f"evaluate(dataset={rules!r}, samples={str(file)!r}, parallel=2, min_time_limit={SECONDS})\n"
    )
    override = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}[rules]
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, override: str(data), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    results = json.loads((folder / "samples_eval_results.json").read_text())["eval"]
    taken = {task: iter(rows) for task, rows in results.items()}
    rows = [next(taken[task]) for task, _ in samples]
    assert [row["solution"] for row in rows] == [code for _, code in samples]
    return [row["base_status"] == row["plus_status"] == "pass" for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("rules", FILES)
def test_verdicts_are_plain_evalplus(rules, benchmarks, tmp_path, monkeypatch):
    monkeypatch.setattr(evalplus, "SECONDS_PER_TEST", SECONDS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    count = int(os.environ.get("HARC_COMPARED_PROBLEMS", "10"))
    draw = random.Random(0)
    rows = read_jsonl(benchmarks / FILES[rules])
    # Small inputs keep this quick; EvalPlus's special cases are in.
    special = {"find_zero", "are_equivalent", "sum_div", "surface_Area", "digit_distance_nums", "check_str", "Diff"}
    small = [row for row in rows if len(json.dumps(row)) < 60_000 or row["entry_point"] in special]
    chosen = [row for row in small if row["entry_point"] in special]
    chosen += draw.sample([row for row in small if row not in chosen], count - min(count, len(chosen)))
    samples = []
    for row in chosen:
        code = row["prompt"] + row["canonical_solution"]
        names = ["the same", *draw.sample(list(WRAPPERS)[1:], 9)]
        programs = [wrapped(code, row["entry_point"], WRAPPERS[name]) for name in names]
        programs += [*mutants(code, draw, 5), code.replace("return", "yield"), "", "def f(:"]
        samples += [(row["task_id"], program) for program in dict.fromkeys(programs)]
    expected = plain(tmp_path, rules, chosen, samples)
    units = [evalplus.Unit(row, [code for task, code in samples if task == row["task_id"]]) for row in chosen]
    found = [verdict for row in evalplus.run(units, rules) for verdict in row]
    differing = [
        f"{task}: EvalPlus says {theirs}, we say {ours}\n{code}"
        for (task, code), theirs, ours in zip(samples, expected, found, strict=True)
        if theirs != ours
    ]
    assert not differing, "\n".join(differing)
    assert 0.1 < sum(expected) / len(expected) < 0.9
