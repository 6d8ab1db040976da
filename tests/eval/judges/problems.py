"""A problem in EvalPlus's format, and the function that solves it."""

DOUBLE = {
    "task_id": "HumanEval/3",
    "prompt": 'import math\n\n\ndef double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "base_input": [[1], [2]],
    "plus_input": [[5], [-7]],
    "atol": 0,
    "contract": "",
}
RIGHT = "def double(x):\n    return 2 * x\n"
