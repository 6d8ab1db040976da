"""The evaluate stage: one engine for a model, all tasks of a cell in one go (METHOD section 8)."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.data.read import local_path
from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import A_GPU, generating, model, require_engine

if TYPE_CHECKING:
    from eval.engines import Engine

PROBLEMS = 600  # of a published benchmark, about
ANSWER = 1024  # tokens that an answer may have, where the scale names none


@dataclass
class SamplingConfig:
    """How answers are drawn."""

    samples: int = 16
    """Answers per problem, 1 or more."""

    temperature: float = 0.1
    """Of the sampling, 0 (greedy) or more."""

    seed: int = 0
    """Of the sampling, and of the intervals' bootstrap."""

    limit: int | None = None
    """Problems per task, the first ones, 1 or more (null: all)."""

    task_folder: str | None = None
    """Folder with task files in lm-eval's format that are run instead of ours, or lm_eval: its own tasks."""

    task_metrics: dict[str, str] = field(default_factory=dict)
    """Task of that folder -> its metric and filter, as exact_match,strict-match, where its file has several."""

    def __post_init__(self) -> None:
        """Refuses values that nothing could be measured with when the configuration is composed."""
        for key, least in (("samples", 1), ("limit", 1), ("temperature", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"evaluate.{key}={value}: expected {least} or more")


@dataclass
class EvaluateStageConfig(SamplingConfig):
    """One model, some tasks."""

    model: str | None = None
    """The model, a folder or hub id (null: input `model`)."""

    tasks: dict[str, str | None] = MISSING
    """Task of eval/tasks -> its data file (null: the published data)."""

    max_new_tokens: int | None = None
    """Tokens per answer (null: each task's own limit)."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """What generates."""


def evaluate(config: EvaluateStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Samples every problem of every task and judges the answers.

    inputs: `model` unless the config names one; `world` where task data comes from the tiny world.
    """
    from eval.engines import load_engine

    tasks = checked(config, inputs)
    engine = load_engine(config.engine, model(inputs, "model", config.model))
    began = time.perf_counter()
    try:
        results = sampled(config, tasks, engine, out)
    finally:
        engine.close()
    return {"tasks": results, "work_seconds": time.perf_counter() - began}


def checked(config: EvaluateStageConfig, inputs: dict[str, Path]) -> dict[str, Path | None]:
    """Task -> its data file, where the config names one; raises as `check`, before a model is loaded."""
    from eval.evaluation import check_tasks
    from eval.task_folder import check_folder

    tasks = {task: local_path(data, inputs.get("world")) if data else None for task, data in config.tasks.items()}
    if config.task_folder is not None:
        check_folder(config.task_folder, _metrics(config))
    else:
        check_tasks(tasks, config.engine.allow_unsandboxed)
    return tasks


def sampled(config: EvaluateStageConfig, tasks: dict[str, Path | None], engine: "Engine", out: Path) -> dict[str, Any]:
    """The result of each task, by an open engine."""
    import eval as evaluation
    from eval.task_folder import evaluate_folder

    run: Callable[..., dict[str, Any]]
    if config.task_folder is not None:
        run = functools.partial(evaluate_folder, folder=config.task_folder, tasks=_metrics(config))
    else:
        run = functools.partial(evaluation.evaluate, tasks=tasks, allow_unsandboxed=config.engine.allow_unsandboxed)
    return run(
        engine,
        samples=config.samples,
        temperature=config.temperature,
        seed=config.seed,
        limit=config.limit,
        max_new_tokens=config.max_new_tokens,
        out=out,
    )


def _metrics(config: EvaluateStageConfig) -> dict[str, str | None]:
    return {task: config.task_metrics.get(task) for task in config.tasks}


def needs(node: Node, size: ModelSize) -> Estimate:
    """The engine holds the weights and its cache."""
    return Estimate(resources(node, size).anywhere_gb, SMALL_GB)


def check(node: Node) -> None:
    """The engine, and problems on published data or in files of one's own; the tiny world's are yet to be made.

    Raises:
        ImportError: a package that generates or judges isn't installed.
        ValueError: a benchmark's data file is missing or malformed, or cannot be judged with what is here; a task
            file of `task_folder` cannot be run (eval.task_folder.check_folder).
        eval.sandbox.process.SandboxError: generated code is to be run, and the sandbox does not hold here.
    """
    from eval.evaluation import check_tasks, require_sandbox
    from eval.task_folder import check_folder

    permitted = node.config.engine.allow_unsandboxed
    require_engine(node.config.engine)
    if node.config.task_folder is not None:
        check_folder(node.config.task_folder, _metrics(node.config))
        return
    require_sandbox(node.config.tasks, permitted)
    own = {task: data for task, data in node.config.tasks.items() if not (data or "").startswith("world:")}
    if own:
        check_tasks({task: local_path(data, None) if data else None for task, data in own.items()}, permitted)


def resources(node: Node, size: ModelSize) -> Resources:
    """The GPUs that the engine shares a model between."""
    return generating(node.config.engine, size)


def work(node: Node, size: ModelSize) -> Work:
    """All answers to all problems, half as long as they may be."""
    tiny = node.inputs.get("world")
    problems = len(node.config.tasks) * (tiny.config.test if tiny else PROBLEMS)
    if node.config.limit is not None:
        problems = min(problems, len(node.config.tasks) * node.config.limit)
    tokens = size.answer(node.config.max_new_tokens or ANSWER)
    return Work(generated=size.forward(problems * node.config.samples * tokens), gigabytes=size.model)


SPEC = Stage("evaluate", EvaluateStageConfig, evaluate, needs, resources, work, preflight=check, remedy=A_GPU)
