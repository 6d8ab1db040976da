"""The merge stage: a call of harc.merge."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipelines.runner.estimate import Estimate, ModelSize, Work
from pipelines.runner.resources import Resources, on_gpus
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import calibration_text, calibration_tokens, sources_of


@dataclass
class MergeStageConfig:
    """One merge of the domains' source models."""

    method: str = MISSING
    """A method of harc.merge."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The method's settings; weights by domain, in their order."""

    base: str | None = None
    """Checkpoint that the sources were tuned from, a folder or hub id (null: input `base`)."""

    sources: dict[str, str | None] = field(default_factory=dict)
    """Domain -> its source model, a folder or hub id (null: input `source_<domain>`)."""

    max_length: int | None = None
    """Tokens per conversation, for methods that read text (null: others); longer ones are cut on the right."""

    plugin: str | None = None
    """Module outside harc that registers the method (null: harc's own)."""

    plugin_digest: str | None = None
    """Hash of that module's source: an edited formula makes another result."""


def merge(config: MergeStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Merges the sources. inputs: `base`, `source_<domain>`, and `data_<domain>` for methods that read text."""
    import harc

    if config.plugin is not None:
        import_module(config.plugin)  # the cost stage runs in a process that has not imported it
    sources = sources_of(config.sources, inputs)
    data = calibration_text(sources, inputs, config.max_length) if config.max_length is not None else None
    settings = dict(config.settings)
    if "weights" in settings:
        settings["weights"] = [settings["weights"][name] for name in sources]
    report = harc.merge(
        config.method,
        list(sources.values()),
        inputs.get("base") or config.base,
        out,
        data=None if data is None else list(data.values()),
        **settings,
    )
    order = {name: report.experts.get(str(source), "the reference") for name, source in sources.items()}
    return {"tensors": report.tensors, "seconds": report.seconds, "reference": report.reference, "experts": order}


def needs(node: Node, model: ModelSize) -> Estimate:
    """A few tensors, and two models where the method reads text; the model on disk."""
    reads_text = any(name.startswith("data_") for name in node.inputs)
    return Estimate((2 * model.model if reads_text else 0) + 4 * model.layer, model.model)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for the tensors of a layer, and for the models that read text."""
    return on_gpus(1, 4 * model.layer, needs(node, model).memory_gb - 4 * model.layer + model.layer)


def work(node: Node, model: ModelSize) -> Work:
    """Every model read and one written; the text, forward and backward, where the method reads it."""
    return Work(
        flops=3 * model.forward(calibration_tokens(node)), gigabytes=(2 + len(node.config.sources)) * model.model
    )


SPEC = Stage("merge", MergeStageConfig, merge, needs, resources, work)
