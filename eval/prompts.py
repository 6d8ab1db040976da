"""What a benchmark asks, as its task file words it: for readers of data and for the tiny world, which ask the same."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from eval.tasks import FOLDER


def prompt(task: str, problem: Mapping[str, Any]) -> str:
    """The user turn for a problem: the task's `doc_to_text`, rendered as lm-eval renders it.

    Args:
        task: a file of eval/tasks.
        problem: the columns that the wording names.

    Raises:
        jinja2.UndefinedError: a column is missing.
    """
    return _template(task).render(problem)


@functools.cache
def response_start(task: str) -> str:
    """How the assistant's turn begins, before the first token is generated: the task's `gen_prefix`."""
    return str(_wording(task).get("gen_prefix", ""))


@functools.cache
def _template(task: str) -> Template:
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(_wording(task)["doc_to_text"])


@functools.cache
def _wording(task: str) -> dict[str, Any]:
    """A task's file after the one that it includes; functions, which judge answers, are left out."""
    found = yaml.load((FOLDER / f"{task}.yaml").read_text(encoding="utf-8"), Loader=_Loader)
    return {**(_wording(Path(found["include"]).stem) if "include" in found else {}), **found}


class _Loader(yaml.SafeLoader):
    """Reads task files without importing what they name."""


_Loader.add_constructor("!function", lambda loader, node: None)
