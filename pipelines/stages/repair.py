"""The repair stage: a call of harc.repair. Its finished layers are kept beside `out`, for a killed run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harc.repairing.settings import PARTS, RepairSettings
from pipelines.runner.estimate import Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.calibrate import FEWER_TOKENS, CalibrateConfig, TextAndSources
from pipelines.stages.fields import fields_of, settings_of
from pipelines.stages.inputs import calibration_text, calibration_tokens, device, sources_of, streaming


@dataclass
class RepairConfig(fields_of(RepairSettings, CalibrateConfig)):  # type: ignore[misc]
    """Repair of whole blocks; the fields of harc.repairing.settings, where each is explained, and these."""

    method: str = "repair"
    """repair."""

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """Some of router, experts and attention."""

    memory_budget_gb: float | None = None
    """Gigabytes of host memory; hidden states beyond are memory-mapped (null: 80 % of what is available)."""

    def __post_init__(self) -> None:
        """Refuses values out of range when the configuration is composed."""
        self.settings()

    def settings(self) -> RepairSettings:
        """What harc.repair takes."""
        return settings_of(self, RepairSettings, "calibrate")

    @property
    def label(self) -> str:
        """What a repaired model is called after its merge's label."""
        return self.method if set(self.parts) == set(PARTS) else f"{self.method}-{'-'.join(self.parts)}"


@dataclass
class RepairStageConfig(TextAndSources):
    """One repair of one merged model."""

    repair: RepairConfig = field(default_factory=RepairConfig)
    """Settings of the repair."""


def repair(config: RepairStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Repairs `merged` toward `source_<domain>` on the text of `data_<domain>`."""
    import torch

    import harc

    sources = sources_of(config.sources, inputs)
    data = calibration_text(sources, inputs, config.max_length, config.fraction, config.seed)
    report = harc.repair(
        inputs["merged"],
        list(sources.values()),
        list(data.values()),
        out=out,
        dtype=getattr(torch, config.dtype),
        device=device(),
        memory_budget_gb=config.repair.memory_budget_gb,
        resume=out.with_name(f"{out.name}.layers"),
        settings=config.repair.settings(),
    )
    return report.to_dict()


def needs(node: Node, model: ModelSize) -> Estimate:
    """A layer of every model and four hidden states of each token in memory; two models on disk, one for a while."""
    return Estimate(resources(node, model).anywhere_gb, model.model, model.model)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for a layer of every model; the hidden states stay on the host."""
    states = 4 * model.hidden_states(calibration_tokens(node, model))
    return streaming(model, states, 1 + len(node.config.sources), passes=8)


def work(node: Node, model: ModelSize) -> Work:
    """The text through every layer, and about four times as much again for the fits of whole blocks."""
    return Work(flops=8 * model.forward(calibration_tokens(node, model)), gigabytes=3 * model.model)


SPEC = Stage("repair", RepairStageConfig, repair, needs, resources, work, remedy=FEWER_TOKENS)
