"""The diagnose stage: a call of harc.diagnose."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data import load_records
from pipelines.data.source import DataSource
from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import RECORDS, calibration_text, calibration_tokens, device, sources_of, streaming


@dataclass
class DiagnoseConfig:
    """Routing of a model against its sources, on held-out text or on calibration text."""

    sources: dict[str, str | None] = field(default_factory=dict)
    """Domain -> its source model, a folder or hub id (null: input `source_<domain>`)."""

    heldout: dict[str, DataSource] = field(default_factory=dict)
    """Domain -> text; empty when the text is the calibration data, which a stage made."""

    max_length: int = 4096
    """Tokens per conversation; longer ones are cut on the right."""

    dtype: str = "bfloat16"
    """That models are run in: float32, bfloat16 or float16."""


SHORTER_TEXT = "a GPU for the layers, or less held-out text (scale.domains.<domain>.heldout.limit), makes it fit"
ROUTING = ("kl", "mismatch", "shift", "overlap")
MEANS = (*ROUTING, *(f"{name}_same" for name in ROUTING), "loss", "source_loss", "output_kl")


def diagnose(config: DiagnoseConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Routing and predictions of `model` against each domain's source, on that domain's text.

    The text is held-out text that calibration never saw, or that of `data_<domain>` where the config names none.
    Returns harc.RoutingReport by domain name, and for each of MEANS its mean over layers, then domains: `<name>_mean`.
    """
    import torch

    import harc
    from harc.tokens import encode, load_tokenizer

    sources = sources_of(config.sources, inputs)
    if config.heldout:
        tokenizer = load_tokenizer(next(iter(sources.values())))
        text = {
            name: encode(tokenizer, load_records(config.heldout[name], inputs.get("world")), config.max_length)
            for name in sources
        }
    else:
        text = calibration_text(sources, inputs, config.max_length)
    report = harc.diagnose(
        inputs["model"],
        list(sources.values()),
        list(text.values()),
        dtype=getattr(torch, config.dtype),
        device=device(),
    )
    routing = _by_domain(report.to_dict(), list(sources))
    routing |= {f"{name}_mean": _mean(routing[name]) for name in MEANS}
    (out / "routing.json").write_text(json.dumps(routing, indent=1))
    return routing


def _by_domain(report: dict[str, Any], domains: list[str]) -> dict[str, Any]:
    """The report with the domains' names in place of their numbers."""
    return {
        key: {domains[index]: value for index, value in values.items()} if isinstance(values, dict) else values
        for key, values in report.items()
    }


def _mean(by_domain: dict[str, list[float] | float]) -> float:
    """Over the layers of a domain where there is a value a layer, then over domains."""
    return statistics.fmean(
        statistics.fmean(values) if isinstance(values, list) else values for values in by_domain.values()
    )


def needs(node: Node, model: ModelSize) -> Estimate:
    """A layer, and the hidden states of a domain's text in two models."""
    return Estimate(resources(node, model).anywhere_gb, SMALL_GB)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for a layer; hidden states and router inputs of the model and of a source stay on the host."""
    domains = len(node.config.sources)
    return streaming(model, 4 * model.hidden_states(_tokens(node, model) / domains), 1, passes=6)


def _tokens(node: Node, model: ModelSize) -> float:
    """Of the text of all domains, about."""
    if not node.config.heldout:
        return calibration_tokens(node, model)
    return sum(text.limit or RECORDS for text in node.config.heldout.values()) * model.record(node.config.max_length)


def work(node: Node, model: ModelSize) -> Work:
    """Each domain's text through the model and its source, and routers once more on the same inputs."""
    return Work(flops=4 * model.forward(_tokens(node, model)), gigabytes=2 * model.model)


SPEC = Stage("diagnose", DiagnoseConfig, diagnose, needs, resources, work, version=2, remedy=SHORTER_TEXT)
