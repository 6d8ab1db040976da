"""Judges of one's own: a function under `@register_judge("NAME")` decides for records whose task is NAME.

A plugin module registers it when it is imported; it takes no task file then.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Judge = Callable[[Mapping[str, Any], str], bool]
_JUDGES: dict[str, Judge] = {}


def register_judge(name: str) -> Callable[[Judge], Judge]:
    """Registers function(record, response) -> whether the response is right.

    Args:
        name: what a record's `task` says.

    Raises:
        ValueError: a name that a task file or another function has.
    """
    from eval.tasks import TASKS

    def register(function: Judge) -> Judge:
        there = _JUDGES.get(name)
        if name in TASKS or (there is not None and there.__module__ != function.__module__):
            owner = "a task of eval/tasks" if there is None else f"one of {there.__module__}"
            raise ValueError(f"judge {name!r} of {function.__module__} is already {owner}: rename one")
        _JUDGES[name] = function
        return function

    return register


def find_judge(name: str) -> Judge | None:
    """The registered judge of that name, or None."""
    return _JUDGES.get(name)


def judges_digest() -> str | None:
    """A hash of the registered judges' files, None without any: an edited rule makes other calibration responses."""
    if not _JUDGES:
        return None
    files = {Path(inspect.getfile(function)) for function in _JUDGES.values()}
    return hashlib.sha256(b"\n".join(sorted(file.read_bytes() for file in files))).hexdigest()[:12]
