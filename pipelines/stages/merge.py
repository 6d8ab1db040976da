"""The merge stage: a call of harc.merge."""

import dataclasses
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from harc.merging.registry import find_method
from pipelines.runner.estimate import BYTES, LOADED_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources, on_gpus
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import RECORDS, asked_records, calibration_text, calibration_tokens, sources_of

BATCH_NUMBERS = 1 / 60  # billions of each model's weights that methods on whole matrices take at once
REMEDY = "a GPU to merge on, or a method that reads no text, makes it fit"


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
    """A few tensors, or a layer and its sums where the method reads text; the model on disk, and what it scratches."""
    scratch = find_method(node.config.method).scratch_bytes * len(node.config.sources) * model.size.parameters / 1e9
    return Estimate(resources(node, model).anywhere_gb, model.model, scratch)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for the tensors at work, or for a layer and its sums (harc/merging/memory.py)."""
    width, sources = BYTES[model.dtype], len(node.config.sources)
    method = find_method(node.config.method)
    if method.kind == "data":  # those that keep sums on disk go through the text batch by batch, without states of all
        tokens = 0.0 if method.scratch_bytes else calibration_tokens(node, model)
        states = model.hidden_states(tokens) * 4 / width  # in float32 on a CPU
        at_work = (sources * model.outer + 2 * model.layer) * 4 / width + 3 * model.grams
        need = on_gpus(1, LOADED_GB + states, at_work)
        return dataclasses.replace(need, mappable_gb=states, passes=2.0 * model.size.layers)
    most = max(model.outer / 2 / width, BATCH_NUMBERS) if model.model > BATCH_NUMBERS else model.model / width
    return on_gpus(1, LOADED_GB + 2 * (1 + sources) * most * width, 4 * (4 + sources) * most)


def work(node: Node, model: ModelSize) -> Work:
    """Every model read twice and one written; the text forward and backward, and what a method does whatever the text.

    That is: of steps on whole matrices (WUDI) each a product, and about five before; of sums on disk (Fisher) reading
    and writing them for every batch; of Gram matrices (RegMean) the products and the solve of every expert.
    """
    method, settings, size = find_method(node.config.method), node.config.settings, model.size
    sources = len(node.config.sources)
    flops = 3 * model.forward(calibration_tokens(node, model))
    gigabytes = (2 * (1 + sources) + 1) * model.model
    if "steps" in settings:
        flops += 2 * size.parameters * size.hidden * (settings["steps"] + 5)
    if method.scratch_bytes:
        batches = max(1.0, asked_records(node) / sources / settings.get("batch_size", RECORDS))
        gigabytes += 2 * batches * sources * method.scratch_bytes * size.parameters / 1e9
    elif method.kind == "data":
        h, w = float(size.hidden), float(size.expert_width)
        flops += size.layers * size.experts * ((1 + sources) * (4 * w * h**2 + 2 * h * w**2) + (h**3 + w**3) / 3)
    return Work(flops=flops, gigabytes=gigabytes)


SPEC = Stage("merge", MergeStageConfig, merge, needs, resources, work, remedy=REMEDY)
