"""The calibrate stage: a call of harc.calibrate. Its finished layers are kept beside `out`, for a killed run."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from harc.calibration.settings import CalibrationSettings
from pipelines.runner.estimate import BYTES, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.fields import fields_of, settings_of
from pipelines.stages.inputs import calibration_text, calibration_tokens, device, sources_of, streaming

PASSES = 12  # of a layer over its hidden states: four to forward them, about eight to solve
FEWER_TOKENS = "fewer tokens (calibration_data.fraction, scale.sample.target) or a GPU for the layers make it fit"


@dataclass
class CalibrateConfig:
    """A calibration of the merged routers; `none` leaves them as merged."""

    method: str = MISSING
    """harc, repair, router_sft or none."""


@dataclass
class HarcConfig(fields_of(CalibrationSettings, CalibrateConfig)):  # type: ignore[misc]
    """HARC (METHOD sections 3 to 5); the fields of harc.calibration.settings, where each is explained, and these."""

    method: str = "harc"
    """harc."""

    dtype: str | None = None
    """What the merged model computes in, each router being passed on to the next layer as solved: float32 is the
    authors' way (null: the scale's, and routers passed on as they are written)."""

    memory_budget_gb: float | None = None
    """Gigabytes of host memory; hidden states beyond are memory-mapped (null: 80 % of what is available)."""

    def __post_init__(self) -> None:
        """Refuses values out of range when the configuration is composed."""
        self.settings()
        if self.dtype not in (None, *BYTES):
            raise ValueError(f"calibrate.dtype={self.dtype}: expected one of {', '.join(BYTES)}, or null")

    def settings(self) -> CalibrationSettings:
        """What harc.calibrate takes."""
        return settings_of(self, CalibrationSettings, "calibrate")

    @property
    def label(self) -> str:
        """What a calibrated model is called after its merge's label."""
        chosen = [self.target] * (self.target != "merged_inputs") + [self.control] * (self.control != "none")
        return "-".join([self.method, *chosen])


@dataclass
class TextAndSources:
    """What a merged model is calibrated or repaired on: its sources, and their text."""

    fraction: float = 1.0
    """Fraction of each domain's calibration records that is used, above 0, at most 1."""

    seed: int = 0
    """Which records those are."""

    max_length: int = 4096
    """Tokens per conversation; longer ones are cut on the right."""

    dtype: str = "bfloat16"
    """That models are run in: float32, bfloat16 or float16."""

    sources: dict[str, str | None] = field(default_factory=dict)
    """Domain -> its source model, a folder or hub id (null: input `source_<domain>`)."""

    plugin: str | None = None
    """Module outside harc that registers the objective (null: harc's own)."""

    plugin_digest: str | None = None
    """Hash of that module's source: an edited objective makes another result."""


@dataclass
class CalibrateStageConfig(TextAndSources):
    """One calibration of one merged model."""

    harc: HarcConfig = field(default_factory=HarcConfig)
    """Settings of the calibration."""


def calibrate(config: CalibrateStageConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Calibrates the routers of `merged` to those of `source_<domain>` on the text of `data_<domain>`."""
    import torch

    import harc

    if config.plugin is not None:
        import_module(config.plugin)  # the cost stage runs in a process that has not imported it
    sources = sources_of(config.sources, inputs)
    data = calibration_text(sources, inputs, config.max_length, config.fraction, config.seed)
    report = harc.calibrate(
        inputs["merged"],
        list(sources.values()),
        list(data.values()),
        out=out,
        dtype=getattr(torch, config.harc.dtype or config.dtype),
        device=device(),
        rounded=config.harc.dtype is None,
        resume=out.with_name(f"{out.name}.layers"),
        memory_budget_gb=config.harc.memory_budget_gb,
        settings=config.harc.settings(),
    )
    return report.to_dict()


def needs(node: Node, model: ModelSize) -> Estimate:
    """A layer, and the hidden states of all tokens, in memory; on disk a model, since every shard has routers in it."""
    return Estimate(resources(node, model).anywhere_gb, model.model)


def resources(node: Node, model: ModelSize) -> Resources:
    """A GPU for a layer; hidden states and router inputs of all tokens stay on the host, the sources' if they run."""
    copies = 4 if node.config.harc.target == "source_inputs" else 2
    states = copies * model.hidden_states(calibration_tokens(node, model))
    wider = BYTES[node.config.harc.dtype or model.dtype] / BYTES[model.dtype]
    return streaming(model, wider * states, wider, passes=PASSES)


def work(node: Node, model: ModelSize) -> Work:
    """The text through the merged model and its sources, and about as much again for the fits."""
    passes = 1 + 1 / len(node.config.sources)
    return Work(flops=2 * passes * model.forward(calibration_tokens(node, model)), gigabytes=2 * model.model)


SPEC = Stage("calibrate", CalibrateStageConfig, calibrate, needs, resources, work, remedy=FEWER_TOKENS)
