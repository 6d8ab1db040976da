"""The tasks: a YAML file each, whose `!function` names are in `scoring.py`."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("[!_]*.yaml")))


@functools.cache
def task_config(task: str) -> dict[str, Any]:
    """A task's file, what it includes merged in and its functions imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(FOLDER / f"{task}.yaml", resolve_func=True)


def score(task: str, records: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]]) -> list[list[bool]]:
    """Runs a task's own filters and judge on responses from anywhere; see `eval.judges.judge`."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose among {', '.join(TASKS)}")
    if not records:
        return []
    from lm_eval.filters import build_filter_ensemble

    config = task_config(task)
    (chain,) = config["filter_list"]
    steps = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in chain["filter"]]
    filtered: Any = [list(texts) for texts in responses]
    for step in build_filter_ensemble(chain["name"], steps).filters:
        filtered = step().apply(filtered, list(records))
    judged = [config["process_results"](doc, [texts]) for doc, texts in zip(records, filtered, strict=True)]
    return [[bool(verdict) for verdict in row["correct"]] for row in judged]
