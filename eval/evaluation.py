"""All tasks of one model with one engine: lm-eval builds the prompts and filters, our judges count, files are written.

Accuracy is the mean over problems of the share of samples that are right (METHOD section 8).
"""

import contextlib
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.data import DataError, problems_from_file, read_jsonl
from eval.engines.base import Engine
from eval.judges.instructions import require_checkers
from eval.results import task_result, write_results, write_samples
from eval.sandbox import permission
from eval.tasks import FOLDER, TASKS, task_config

log = logging.getLogger(__name__)


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
    allow_unsandboxed: bool = False,
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
        allow_unsandboxed: whether generated code may run where the sandbox does not hold.

    Returns:
        A task: accuracy, ci95 (half-width of its 95 % interval), samples, ids, counts (right samples of each problem).

    Raises:
        ValueError: an unknown task, or settings out of range.
        eval.data.DataError: a data file that is missing, empty or malformed (the line is named).
        eval.sandbox.process.SandboxError: the sandbox that generated code needs does not hold here.
    """
    if samples < 1 or temperature < 0 or (limit is not None and limit < 1):
        raise ValueError(
            f"samples and limit are at least 1, temperature at least 0: samples={samples}, limit={limit}, "
            f"temperature={temperature}"
        )
    check_tasks(tasks, allow_unsandboxed)
    arguments: dict[str, Any] = {"temperature": temperature, "do_sample": temperature > 0}
    if max_new_tokens is not None:
        arguments["max_gen_toks"] = max_new_tokens
    with quiet_lm_eval(), permission.allowing(allow_unsandboxed):
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
        results[name] = task_result(documents, samples, seed)
        if out is not None:
            write_samples(out / "samples" / f"{name}.jsonl", documents, results[name]["ids"])
    if out is not None:
        settings = {"temperature": temperature, "seed": seed, "limit": limit, "max_new_tokens": max_new_tokens}
        write_results(out, settings, results)
    return results


def check_tasks(tasks: Mapping[str, Path | str | None], allow_unsandboxed: bool = False) -> None:
    """Finds what is wrong with tasks, data and sandbox before a model is loaded; raises as `evaluate` does."""
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
    require_sandbox(tasks, allow_unsandboxed)


def require_sandbox(tasks: Iterable[str], allow_unsandboxed: bool = False) -> None:
    """Raises SandboxError where one of the tasks runs generated code and the sandbox does not hold here."""
    if any("canonical_solution" in task_config(name)["metadata"]["required"] for name in tasks):
        permission.require(allow_unsandboxed)


def _data(name: str, path: Path | str | None) -> dict[str, Any]:
    if path is None:
        return {}
    return {"custom_dataset": functools.partial(problems_from_file, path), "test_split": "test"}


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
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
