"""The replay stage: an evaluation of a model that is routed by another one's decisions (figure 1).

Both are loaded by transformers, whatever engine evaluates elsewhere: vLLM routes by the model's own routers alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources, on_gpus
from pipelines.runner.stage import Node, Stage
from pipelines.stages import evaluate
from pipelines.stages.evaluate import EvaluateStageConfig
from pipelines.stages.inputs import model


@dataclass
class ReplayConfig(EvaluateStageConfig):
    """One model, some tasks, and whose decisions route it."""

    decisions: dict[str, str | None] = field(default_factory=dict)
    """Domain -> the source model that decides, a folder or hub id (null: input `source_<domain>`); one."""


def replay(config: ReplayConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Samples and judges as the evaluate stage does, the model routed as the source routes the same tokens."""
    from transformers import AutoModelForCausalLM

    import harc
    from eval.engines.transformers_engine import TransformersEngine

    ((domain, given),) = config.decisions.items()
    tasks = evaluate.checked(config, inputs)
    engine = TransformersEngine(config.engine, model(inputs, "model", config.model))
    try:
        merged = engine.model
        source = AutoModelForCausalLM.from_pretrained(
            str(model(inputs, f"source_{domain}", given)), dtype=merged.dtype, use_safetensors=True
        )
        with harc.replay_decisions(merged, source.to(merged.device).eval()):
            return {"tasks": evaluate.sampled(config, tasks, engine, out)}
    finally:
        engine.close()


def needs(node: Node, size: ModelSize) -> Estimate:
    """Two models, and their caches."""
    return Estimate(2.6 * size.model, SMALL_GB)


def resources(node: Node, size: ModelSize) -> Resources:
    """One GPU with both models."""
    return on_gpus(1, size.model, 2 * size.model)


def work(node: Node, size: ModelSize) -> Work:
    """Every token is read by both models."""
    alone = evaluate.work(node, size)
    return Work(generated=2 * alone.generated, gigabytes=2 * size.model)


SPEC = Stage("replay", ReplayConfig, replay, needs, resources, work, preflight=evaluate.check)
