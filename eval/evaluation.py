"""All tasks of one model with one engine: lm-eval builds the prompts and filters, our judges count, files are written.

Accuracy is the mean over problems of the share of samples that are right (METHOD section 8).
"""

import contextlib
import functools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import statistics
from eval.data import DataError, read_jsonl
from eval.engines.base import Engine
from eval.judges.instructions import require_checkers

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "tasks"
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def evaluate(
    engine: Engine,
    tasks: Mapping[str, Path | str | None],
    *,
    samples: int = 16,
    temperature: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    out: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Draws `samples` responses a problem and counts the right ones.

    Args:
        engine: an open engine; it stays open.
        tasks: task names, each with a data file that replaces the published data set, or None.
        samples: responses a problem; with temperature 0 they are all the same.
        temperature: of the sampling.
        seed: of the sampling and of the intervals' bootstrap.
        limit: the first so many problems of each task; None is all.
        max_new_tokens: replaces the tasks' own limit.
        out: a directory for results.json and samples/<task>.jsonl; None writes nothing.

    Returns:
        A task: accuracy, ci95 (half-width of its 95 % interval), samples, ids, counts (right samples of each problem).

    Raises:
        ValueError: an unknown task, or settings out of range.
        eval.data.DataError: a data file that is missing, empty or malformed (the line is named).
    """
    if samples < 1 or temperature < 0 or (limit is not None and limit < 1):
        raise ValueError(
            f"samples and limit are at least 1, temperature at least 0: samples={samples}, limit={limit}, "
            f"temperature={temperature}"
        )
    check_tasks(tasks)
    arguments: dict[str, Any] = {"temperature": temperature, "do_sample": temperature > 0}
    if max_new_tokens is not None:
        arguments["max_gen_toks"] = max_new_tokens
    with _quiet_lm_eval():
        # Not simple_evaluate: it spends four seconds after every call on the versions of pip, conda and compilers.
        from lm_eval.evaluator import evaluate as run_lm_eval
        from lm_eval.tasks import TaskManager

        from eval.lm import EngineLM

        selected = [
            {
                "task": name,
                "repeats": samples,
                "generation_kwargs": {**task_config(name)["generation_kwargs"], **arguments},
                **_data(name, path),
            }
            for name, path in tasks.items()
        ]
        # A group is lm-eval's way to load tasks of the index with settings replaced.
        manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
        try:
            loaded = manager.load([{"group": "harc", "task": selected}])
        except OSError as error:
            raise DataError(
                f"a published data set cannot be had ({error}); give a local copy as the task's data"
            ) from error
        output = run_lm_eval(
            lm=EngineLM(engine, seed),
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            log_samples=True,
        )
    results = {}
    for name in tasks:
        documents = sorted(output["samples"][name], key=lambda document: document["doc_id"])
        results[name] = _result(documents, samples, seed)
        if out is not None:
            _write_samples(out / "samples" / f"{name}.jsonl", documents, results[name]["ids"])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        settings = {"temperature": temperature, "seed": seed, "limit": limit, "max_new_tokens": max_new_tokens}
        (out / "results.json").write_text(json.dumps({"settings": settings, "tasks": results}, indent=1) + "\n")
    return results


def check_tasks(tasks: Mapping[str, Path | str | None]) -> None:
    """Finds what is wrong with tasks and their data files before a model is loaded; raises as `evaluate` does."""
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"unknown task {unknown or 'list (it is empty)'}: choose among {', '.join(TASKS)}")
    for name, path in tasks.items():
        config = task_config(name)
        rows = None
        if path is not None:
            rows = read_jsonl(path, config["metadata"]["required"])
        elif not (config.get("dataset_path") or config.get("custom_dataset")):
            raise ValueError(f"{name} has no published data set: give its data file")
        if "instruction_id_list" in config["metadata"]["required"]:
            require_checkers(rows, str(path or config["dataset_path"]))


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


@functools.cache
def task_config(task: str) -> dict[str, Any]:
    """A task's file, what it includes merged in and its functions imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(FOLDER / f"{task}.yaml", resolve_func=True)


def _data(name: str, path: Path | str | None) -> dict[str, Any]:
    if path is None:
        return {}
    module = task_config(name)["process_results"].__globals__
    return {"custom_dataset": functools.partial(module["problems_from_file"], path), "test_split": "test"}


def _result(documents: Sequence[Mapping[str, Any]], samples: int, seed: int) -> dict[str, Any]:
    counts = [sum(document["correct"]) for document in documents]
    interval = statistics.accuracy(counts, samples, seed)
    return {
        "accuracy": interval.mean,
        "ci95": interval.half_width,
        "samples": samples,
        "ids": [_identity(document) for document in documents],
        "counts": counts,
    }


def _identity(document: Mapping[str, Any]) -> str:
    doc = document["doc"]
    return str(next((doc[key] for key in ("id", "task_id", "unique_id", "key") if key in doc), document["doc_id"]))


def _write_samples(path: Path, documents: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> None:
    """One problem a line: its prompt, and its distinct responses with how often each came and whether it is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for identity, document in zip(ids, documents, strict=True):
            texts, verdicts = document["resps"][0], document["correct"]
            right = dict(zip(texts, verdicts, strict=True))
            responses = [{"text": t, "count": c, "correct": bool(right[t])} for t, c in Counter(texts).most_common()]
            row = {"id": identity, "prompt": document["arguments"][0][0], "responses": responses}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Lm-eval reports its settings at warning level, and a bar a task; what matters is in our own log and results."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    from lm_eval.api import task

    bar = task.tqdm
    task.tqdm = lambda iterable, **_: iterable
    try:
        yield
    finally:
        task.tqdm = bar
        logger.setLevel(level)
