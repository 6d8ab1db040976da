"""One small function a format: from a row as published to a record. Prompts are worded as the evaluation words them.

| format | published as | columns read |
| --- | --- | --- |
| records | files of the tiny world, or your own | prompt [, id, response, task, answer, problem] |
| messages | the OLMoE SFT mixture (allenai/tulu-3-sft-olmo-2-mixture), any chat data | messages [, id] |
| openmathinstruct2 | nvidia/OpenMathInstruct-2 | problem, generated_solution, expected_answer |
| self_oss_instruct | bigcode/self-oss-instruct-sc2-exec-filter-500k-raw | instruction, response |
| ultrafeedback | openbmb/UltraFeedback, HuggingFaceH4/ultrafeedback_binarized | instruction or prompt [, chosen] |
| c4 | allenai/c4, any rows of plain text | text |
| gsm8k | openai/gsm8k | question, answer |
| math500 | HuggingFaceH4/MATH-500 | problem, answer |
| humaneval_plus, mbpp_plus | EvalPlus JSON lines | task_id, prompt, canonical_solution, entry_point |
"""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval import prompts

Record = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How a row becomes a record.

    record: row -> record, or None for a row that cannot be used (no tests, no answer).
    columns: those every row must have.
    unique: keep the first record of each prompt only (data sets with many solutions a problem).
    """

    record: Callable[[dict[str, Any]], Record | None]
    columns: tuple[str, ...]
    unique: bool = False


def _record(
    row: dict[str, Any],
    prompt: str,
    response: str | None = None,
    *,
    task: str | None = None,
    answer: str | None = None,
    problem: dict[str, Any] | None = None,
    name: Any = None,
) -> Record:
    for field, value in (("prompt", prompt), ("response", response), ("answer", answer)):
        if not isinstance(value, str) and not (value is None and field != "prompt"):
            raise TypeError(f"`{field}` is {type(value).__name__}, expected text")
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    identity = name if name is not None else row.get("id")
    return {
        "id": None if identity is None else str(identity),
        "prompt": prompt,
        "response": response,
        "task": task,
        "answer": answer,
        "problem": problem,
    }


def from_records(row: dict[str, Any]) -> Record:
    record = _record(
        row,
        row["prompt"],
        row.get("response"),
        task=row.get("task"),
        answer=row.get("answer"),
        problem=row.get("problem"),
    )
    if row.get("messages"):
        record["messages"] = row["messages"]
    return record


def from_messages(row: dict[str, Any]) -> Record | None:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise TypeError("`messages` is empty or not a list")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    for turn in turns:
        if not isinstance(turn["content"], str):
            raise TypeError(f"the content of a {turn['role']} turn is {type(turn['content']).__name__}, expected text")
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    users = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not users or not users[-1].strip() or not turns[-1]["content"].strip():
        return None
    record = _record(row, users[-1], turns[-1]["content"])
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        record["messages"] = turns
    return record


def from_openmathinstruct2(row: dict[str, Any]) -> Record:
    return _record(
        row,
        prompts.prompt("math500", {"problem": row["problem"].strip()}),
        row["generated_solution"],
        task="math500",
        answer=str(row["expected_answer"]),
    )


_SECTION = re.compile(r"^\[(Reasoning|Implementation|Explanation|Tests)\]\s*$", re.MULTILINE)
_FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def from_self_oss_instruct(row: dict[str, Any]) -> Record | None:
    """A row of the release whose responses still have their [Implementation] and [Tests] sections.

    The tests, assertions that the implementation passes, become an EvalPlus problem: the arguments of each asserted
    call are its inputs, the implementation its canonical solution; so HumanEval+'s judge applies. Rows whose tests are
    not plain calls of one function with JSON values are left out. The instruction alone often does not name the
    function; as in MBPP+, the prompt therefore ends with the first assertion.
    """
    parts = _SECTION.split(row["response"])
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    code = _FENCE.findall(sections.get("Implementation", ""))
    tests = _FENCE.findall(sections.get("Tests", ""))
    if not code or len(tests) != 1:
        return None
    solution, calls = "\n".join(code).strip(), asserted_calls(tests[0])
    if not calls or f"def {calls[0].function}(" not in solution or not _parse(solution):
        return None
    problem = {
        "task_id": f"self-oss-instruct/{row.get('id', row.get('sha1', ''))}",
        "prompt": "",
        "entry_point": calls[0].function,
        "canonical_solution": solution,
        "base_input": [call.arguments for call in calls],
        "plus_input": [],
        "atol": 0,
        "contract": "",
    }
    return _record(
        row,
        prompts.prompt("humaneval_plus", {"prompt": f'"""\n{row["instruction"].strip()}\n{calls[0].text}\n"""'}),
        f"{prompts.response_start('humaneval_plus')}{solution}\n```",
        task="humaneval_plus",
        problem=problem,
    )


@dataclass(frozen=True)
class Call:
    """One asserted call: the function, its arguments, and the assertion's source."""

    function: str
    arguments: list[Any]
    text: str


def asserted_calls(tests: str) -> list[Call]:
    """The calls in the tests' top-level assertions; empty when any of them is not `f(JSON values)`, maybe compared."""
    calls = []
    for statement in _parse(tests):
        if not isinstance(statement, ast.Assert):
            continue
        tested = statement.test
        if isinstance(tested, ast.UnaryOp) and isinstance(tested.op, ast.Not):
            tested = tested.operand
        if isinstance(tested, ast.Compare) and isinstance(tested.ops[0], ast.Eq | ast.Is):
            tested = tested.left
        if not (isinstance(tested, ast.Call) and isinstance(tested.func, ast.Name)) or tested.keywords:
            return []
        try:
            arguments = [ast.literal_eval(argument) for argument in tested.args]
            if json.loads(json.dumps(arguments, allow_nan=False)) != arguments:
                return []
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return []
        calls.append(Call(tested.func.id, arguments, ast.get_source_segment(tests, statement) or ""))
    return calls if len({call.function for call in calls}) == 1 else []


def _parse(code: str) -> list[ast.stmt]:
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def from_ultrafeedback(row: dict[str, Any]) -> Record:
    text = row.get("instruction", row.get("prompt"))
    if text is None:
        raise KeyError(f"neither `instruction` nor `prompt` in {sorted(row)}")
    chosen = row.get("chosen")  # the preferred conversation; openbmb's release has four completions and none chosen
    response = chosen[-1]["content"] if chosen else None
    return _record(row, text, response or None, task="chat", name=row.get("prompt_id", row.get("id")))


def from_c4(row: dict[str, Any]) -> Record | None:
    """Plain text as a user turn that nobody answered: calibration text always goes through the chat template."""
    return _record(row, row["text"], name=row.get("url")) if row["text"].strip() else None


def from_gsm8k(row: dict[str, Any]) -> Record:
    answer = row["answer"].rsplit("####", 1)
    if len(answer) != 2:
        raise ValueError("`answer` does not end with `#### number`")
    return _record(
        row, prompts.prompt("gsm8k", row), row["answer"], task="gsm8k", answer=answer[1].strip().replace(",", "")
    )


def from_math500(row: dict[str, Any]) -> Record:
    return _record(
        row,
        prompts.prompt("math500", row),
        row.get("solution"),
        task="math500",
        answer=str(row["answer"]),
        name=row.get("unique_id"),
    )


def from_humaneval_plus(row: dict[str, Any]) -> Record:
    return _record(
        row,
        prompts.prompt("humaneval_plus", row),
        f"{prompts.response_start('humaneval_plus')}{row['prompt']}{row['canonical_solution'].rstrip()}\n```",
        task="humaneval_plus",
        problem=row,
        name=row["task_id"],
    )


def from_mbpp_plus(row: dict[str, Any]) -> Record:
    return _record(
        row,
        prompts.prompt("mbpp_plus", row),
        f"{prompts.response_start('mbpp_plus')}{row['canonical_solution'].strip()}\n```",
        task="mbpp_plus",
        problem=row,
        name=row["task_id"],
    )


_EVALPLUS = ("task_id", "prompt", "canonical_solution", "entry_point")

FORMATS: dict[str, Format] = {
    "records": Format(from_records, ("prompt",)),
    "messages": Format(from_messages, ("messages",)),
    "openmathinstruct2": Format(
        from_openmathinstruct2, ("problem", "generated_solution", "expected_answer"), unique=True
    ),
    "self_oss_instruct": Format(from_self_oss_instruct, ("instruction", "response"), unique=True),
    "ultrafeedback": Format(from_ultrafeedback, (), unique=True),
    "c4": Format(from_c4, ("text",)),
    "gsm8k": Format(from_gsm8k, ("question", "answer")),
    "math500": Format(from_math500, ("problem", "answer")),
    "humaneval_plus": Format(from_humaneval_plus, _EVALPLUS),
    "mbpp_plus": Format(from_mbpp_plus, _EVALPLUS),
}
