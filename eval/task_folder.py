"""lm-eval task files of a folder of one's own, or of lm-eval itself, on our engine with our number of samples.

Their prompts, stop strings, filters and metrics decide. Each sample is filtered and measured by itself, as with
`repeats: 1`, so that every problem has a count of right samples and intervals and paired gains work as for our tasks.
For a metric that averages over its samples (exact match, pass@1) the accuracy is that of a run with as many repeats.
"""

import functools
import importlib.util
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.data import DataError
from eval.engines.base import Engine
from eval.evaluation import quiet_lm_eval
from eval.results import task_result, write_results, write_samples

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)

BUILT_IN = "lm_eval"  # in the place of a folder: the tasks that lm-eval comes with
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's order
_SAID = {"until", "do_sample", "temperature", *_LENGTHS}  # generation_kwargs that are followed or replaced


def evaluate_folder(
    engine: Engine,
    folder: Path | str,
    tasks: Mapping[str, str | None],
    *,
    samples: int = 16,
    temperature: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    out: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Draws `samples` responses a problem and counts those that the task files call right.

    Args:
        engine: an open engine; it stays open.
        folder: task files in lm-eval's format, looked for in its folders too; or "lm_eval".
        tasks: task name -> its metric as lm-eval prints it, "exact_match,strict-match" (metric, filter); None where the
            file has one of each.
        samples: responses a problem, in place of the file's `repeats`.
        temperature: of the sampling, in place of the file's.
        seed: of the sampling and of the intervals' bootstrap.
        limit: the first so many problems of each task; None is all.
        max_new_tokens: replaces the tasks' own limit.
        out: a directory for results.json and samples/<task>.jsonl; None writes nothing.

    Returns:
        As `eval.evaluate`.

    Raises:
        ValueError: as `check_folder`; a metric that is neither 0 nor 1 for one sample; filters that need several.
        eval.data.DataError: a data set that cannot be had.
    """
    choices = check_folder(folder, tasks)
    results = {}
    with quiet_lm_eval():
        from eval.lm import EngineLM

        lm = EngineLM(engine, seed)
        for name, choice in choices.items():
            task = _load(folder, name, samples, temperature, max_new_tokens)
            task.build_all_requests(
                limit=limit,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                chat_template=lm.apply_chat_template,
                tokenizer_name=lm.tokenizer_name,
            )
            instances = sorted(task.instances, key=lambda instance: instance.doc_id)
            _verdicts(task, name, choice, [instances[0].doc], [""])  # so that what fails does before anything is drawn
            texts = lm.generate_until([instance for instance in instances for _ in range(samples)])
            for number, instance in enumerate(instances):
                instance.resps = texts[number * samples : (number + 1) * samples]
            documents = _judged(task, name, choice, instances)
            results[name] = task_result(documents, samples, seed)
            if out is not None:
                write_samples(out / "samples" / f"{name}.jsonl", documents, results[name]["ids"])
    if out is not None:
        settings = {"temperature": temperature, "seed": seed, "limit": limit, "max_new_tokens": max_new_tokens}
        write_results(out, {**settings, "task_folder": str(folder), "metrics": choices}, results)
    return results


def check_folder(folder: Path | str, tasks: Mapping[str, str | None]) -> dict[str, tuple[str, str]]:
    """Finds what is wrong with task files before a model is loaded; imports the Python that they name.

    Returns:
        Task name -> the metric and the filter that decide.

    Raises:
        ValueError: a folder or task that is not there; a group, a task that generates nothing, or one that runs code
            which the model wrote without HF_ALLOW_CODE_EVAL=1; a metric that is not the file's, or none chosen.
    """
    if not tasks:
        raise ValueError(f"task_folder={folder}: no tasks are asked for")
    if folder != BUILT_IN and not Path(folder).is_dir():
        raise ValueError(f"task_folder={folder}: no such folder; expected one with lm-eval task files, or {BUILT_IN}")
    _warn_of_code(folder)
    return {name: _choice(folder, name, asked) for name, asked in tasks.items()}


@functools.cache
def _warn_of_code(folder: Path | str) -> None:
    if folder != BUILT_IN and any(Path(folder).rglob("*.py")):
        log.warning(
            "%s: the Python that its task files name runs as your own code, in this process and outside the sandbox; "
            "so does model-written code that it executes",
            folder,
        )


def _choice(folder: Path | str, name: str, asked: str | None) -> tuple[str, str]:
    config = _config(folder, name)
    where = f"task_folder={folder}: task {name}"
    kind = config.get("output_type", "generate_until")
    if kind != "generate_until":
        raise ValueError(f"{where} has output_type {kind}; expected generate_until, since engines here generate text")
    if config.get("unsafe_code") and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        raise ValueError(
            f"{where} is marked unsafe_code: it runs what the model wrote, outside the sandbox; set "
            "HF_ALLOW_CODE_EVAL=1 to allow it"
        )
    metrics = [_metric_name(one["metric"]) for one in config.get("metric_list") or [{"metric": "exact_match"}]]
    filters = [chain["name"] for chain in config.get("filter_list") or [{"name": "none"}]]
    choices = {f"{metric},{chain}": (metric, chain) for metric in metrics for chain in filters}
    if asked is None and len(choices) == 1:
        return next(iter(choices.values()))
    if asked not in choices:
        raise ValueError(f"{where}: metric {asked or 'is not chosen'}; name one of {', '.join(choices)}")
    return choices[asked]


def _metric_name(metric: Any) -> str:
    return metric.__name__ if callable(metric) else str(metric)


@functools.cache
def _manager(folder: Path | str, name: str) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    with quiet_lm_eval():
        return TaskManager(include_path=str(_root(folder, name)), include_defaults=False)


def _root(folder: Path | str, name: str) -> Path:
    """Where a task is looked for; of lm-eval's own the folder of its file alone, since indexing all takes a minute."""
    if folder != BUILT_IN:
        return Path(folder)
    spec = importlib.util.find_spec("lm_eval")
    (package,) = (spec and spec.submodule_search_locations) or [""]
    named = re.compile(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    for file in sorted(Path(package, "tasks").rglob("*.yaml")):
        if named.search(file.read_text(encoding="utf-8")):
            return file.parent
    raise ValueError(f"task_folder={folder}: lm-eval has no task {name!r} with a file of its own")


def _config(folder: Path | str, name: str) -> dict[str, Any]:
    """A task's file with what it includes, its functions imported."""
    from lm_eval.tasks._index import Kind
    from lm_eval.tasks._yaml_loader import load_yaml

    index = _manager(folder, name).task_index
    if name not in index:
        known = sorted(one for one, entry in index.items() if entry.kind == Kind.TASK)
        listed = ", ".join(known[:30]) + (f" and {len(known) - 30} more" if len(known) > 30 else "")
        raise ValueError(f"task_folder={folder}: no task {name!r}; it has {listed or 'none'}")
    entry = index[name]
    if entry.kind != Kind.TASK or entry.yaml_path is None:
        raise ValueError(
            f"task_folder={folder}: {name} is a {entry.kind.name.lower()}; expected a task with its own file"
        )
    return load_yaml(entry.yaml_path, resolve_func=True)


def _load(
    folder: Path | str, name: str, samples: int, temperature: float, max_new_tokens: int | None
) -> "ConfigurableTask":
    config = _config(folder, name)
    given = config.get("generation_kwargs") or {}
    if ignored := sorted(set(given) - _SAID):
        log.warning("%s: generation_kwargs %s are not followed: temperature alone is", name, ", ".join(ignored))
    until = given.get("until", config.get("fewshot_delimiter", "\n\n"))  # lm-eval's default
    lengths = [given[key] for key in _LENGTHS if given.get(key) is not None]
    from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_OTHER_SEED

    settings = {
        "until": [until] if isinstance(until, str) else list(until or []),
        "max_gen_toks": max_new_tokens or (lengths[0] if lengths else DEFAULT_MAX_GEN_TOKS),
        "temperature": temperature,
        "do_sample": temperature > 0,
    }
    # A group is lm-eval's way to load tasks of the index with settings replaced.
    asked = {"task": name, "repeats": samples, "generation_kwargs": settings}
    try:
        loaded = _manager(folder, name).load([{"group": "harc", "task": [asked]}])["tasks"]
    except OSError as error:
        raise DataError(f"task_folder={folder}: the data set of {name} cannot be had ({error})") from error
    task: Any = loaded[name]
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return task


def _judged(
    task: "ConfigurableTask", name: str, choice: tuple[str, str], instances: Sequence["Instance"]
) -> list[dict[str, Any]]:
    """Each problem as lm-eval logs it, with a verdict on each sample; equal samples are judged once."""
    distinct = [list(dict.fromkeys(instance.resps)) for instance in instances]
    docs = [instance.doc for instance, texts in zip(instances, distinct, strict=True) for _ in texts]
    verdicts = iter(_verdicts(task, name, choice, docs, [text for texts in distinct for text in texts]))
    documents = []
    for instance, texts in zip(instances, distinct, strict=True):
        right = {text: next(verdicts) for text in texts}
        correct = [right[text] for text in instance.resps]
        documents.append({"doc_id": instance.doc_id, "doc": instance.doc, "arguments": [instance.args],
                          "resps": [instance.resps], "correct": correct})  # fmt: skip
    return documents


def _verdicts(
    task: "ConfigurableTask", name: str, choice: tuple[str, str], docs: Sequence[Any], texts: Sequence[str]
) -> list[bool]:
    """Whether each text is right for its problem, by the chosen filter and metric, one sample at a time."""
    metric, chain = choice
    (ensemble,) = (one for one in task._filters if one.name == chain)
    filtered: Any = [[text] for text in texts]
    try:
        for step in ensemble.filters:
            filtered = list(step().apply(filtered, list(docs)))
        measured = [task.process_results(doc, [kept]) for doc, kept in zip(docs, filtered, strict=True)]
    except Exception as error:
        raise ValueError(f"{name}: its filter {chain} or its metric fails on single samples: {error!r}") from error
    return [_right(values, metric, f"{name}, metric {metric},{chain}") for values in measured]


def _right(values: Mapping[str, Any], metric: str, where: str) -> bool:
    # A function may give its metric under another name: pass_at_k gives "pass@1".
    value = values.get(metric, next(iter(values.values())) if len(values) == 1 else None)
    if value is None:
        raise ValueError(f"{where}: the task gives {', '.join(values) or 'nothing'}; choose one of these")
    while isinstance(value, list | tuple) and len(value) == 1:
        (value,) = value
    if isinstance(value, list | tuple | str) or float(value) not in (0.0, 1.0):
        raise ValueError(f"{where}: {value!r} for one sample; expected right (1) or wrong (0): choose another metric")
    return bool(value)
