"""The evaluate stage: one engine for a model, all tasks of a cell in one go (METHOD section 8)."""

from pathlib import Path
from typing import Any

import eval as evaluation
from eval.engines import load_engine
from pipelines.config import EvaluateStageConfig
from pipelines.data.read import local_path
from pipelines.routers import model


def evaluate(config: EvaluateStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Samples every problem of every task and judges the answers.

    inputs: `model` unless the config names one; `world` where task data comes from the tiny world.
    """
    tasks = {task: local_path(data, inputs.get("world")) if data else None for task, data in config.tasks.items()}
    evaluation.check_tasks(tasks)
    engine = load_engine(config.engine, model(inputs, "model", config.model))
    try:
        results = evaluation.evaluate(
            engine,
            tasks,
            samples=config.samples,
            temperature=config.temperature,
            seed=config.seed,
            limit=config.limit,
            max_new_tokens=config.max_new_tokens,
            out=out,
        )
    finally:
        engine.close()
    return {"tasks": results}
