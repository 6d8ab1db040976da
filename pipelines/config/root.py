"""The root: everything one cell is composed of."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pipelines.config.engine import StageEngineConfig
from pipelines.config.evaluate import CalibrationDataConfig, EvaluateConfig
from pipelines.config.experiment import ExperimentConfig, TrackerConfig
from pipelines.config.merging import MergeConfig
from pipelines.config.scale import ScaleConfig
from pipelines.places import plain_name
from pipelines.stages.calibrate import CalibrateConfig
from pipelines.training.settings import LaunchConfig


@dataclass
class RehearsalConfig:
    """How much of everything there is where `rehearse` is true."""

    layers: int = 2
    """Decoder layers."""

    vocabulary: int = 1024
    """Rows of the embeddings."""

    steps: int = 2
    """Optimizer steps of each training."""

    train_length: int = 512
    """Tokens of a training sequence at most."""

    records: int = 32
    """Calibration records of a domain; they must hold as many tokens as the model is wide."""

    heldout: int = 8
    """Held-out records of a domain."""

    max_new_tokens: int = 48
    """Tokens of an answer."""

    problems: int = 2
    """Problems of a benchmark."""

    samples: int = 2
    """Answers to a problem."""


@dataclass
class Config:
    """Everything one cell is composed of."""

    scale: ScaleConfig = MISSING
    """The world to run in."""

    merge: MergeConfig = MISSING
    """The merging method."""

    calibrate: CalibrateConfig = MISSING
    """The calibration."""

    calibration_data: CalibrationDataConfig = MISSING
    """What routers are calibrated on."""

    evaluate: EvaluateConfig = MISSING
    """How accuracy is measured."""

    tracker: TrackerConfig = MISSING
    """Where runs are followed."""

    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    """The table or figure that the cell is of."""

    engine: StageEngineConfig = MISSING
    """What makes the stages."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Processes of training stages."""

    domains: list[str] = field(default_factory=lambda: ["math", "code"])
    """The scale's domains that are merged, two or more."""

    larger: bool = False
    """Whether the scale's larger architecture is used."""

    swap: str | None = None
    """source gives the merged model each domain's source routers, merged gives each source the merged routers,
    decisions routes the merged model as each domain's source routes the same tokens."""

    sft: bool = False
    """Whether the model is tuned on the calibration data after merging and calibrating."""

    routing_text: str = "heldout"
    """What routing is measured on: heldout or calibration."""

    cost_repeats: int = 0
    """How often merging and calibration are run again to measure their cost."""

    merges: Any = None
    """Merging methods of an experiment that compares them: a list, or all."""

    plugins: list[str] = field(default_factory=list)
    """Modules of your own, imported before anything is composed (pipelines/config/plugins.py)."""

    tuned: str | None = None
    """File with the settings that +experiment=grid chose, or auto: the grid runs first."""

    grid_alpha: list[float] = field(default_factory=lambda: [0.5, 0.9, 0.99])
    """HARC's α that +experiment=grid tries on every merge ([]: none, HARC keeps its own)."""

    seed: int = 0
    """Seed of everything below that is not given its own: world, trainings, responses, random drops, answers."""

    seeds: int = 1
    """Replicates of a sweep, of seed, seed + 1, ...: a report each, and one of all (pipelines/sweep/seeds.py)."""

    outputs: str = "outputs"
    """Folder of everything made."""

    merged: str | None = None
    """A merge of your own (conf/experiment/calibrate.yaml, doctor.yaml, patch.yaml), a folder or hub id."""

    sources: list[str] = field(default_factory=list)
    """The models that it was merged from."""

    base: str | None = None
    """What these were fine-tuned from (conf/experiment/check.yaml)."""

    model: str | None = None
    """A checkpoint to check, or to apply a patch to."""

    calibrated: str | None = None
    """A calibrated merge to make a patch of (conf/experiment/patch.yaml)."""

    patch: str | None = None
    """A patch to apply."""

    engines: list[str] = field(default_factory=lambda: ["transformers", "vllm"])
    """What shall load a checkpoint that is checked; those that are not installed are left out."""

    data: list[str] = field(default_factory=list)
    """A JSONL file for each of the sources."""

    out: str | None = None
    """Where the result goes: a checkpoint, a patch, or the folder of a page."""

    heldout: float = 0.1
    """Fraction of the conversations kept aside, between 0 and 1."""

    cut: int = 20000
    """Tokens of each file that the doctor tries HARC and repair on, about; what is measured on is not among them."""

    rehearse: bool = False
    """Run the scale's rehearsal: true width, few layers and steps, random weights, stand-ins for data."""

    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    """How much of everything a rehearsal has."""

    plan: bool = False
    """Show the chain and run nothing."""

    report: bool = False
    """Make no stage; gather records and report from those that are there."""

    debug: bool = False
    """Show where an error was raised."""

    def __post_init__(self) -> None:
        """Refuses choices that are none when the configuration is composed."""
        if not self.outputs:
            raise ValueError("outputs is empty: name the folder that everything made goes to")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: expected a whole number, 1 or more")
        plain_name(self.scale.name, "scale.name")
        plain_name(self.experiment.name, "experiment.name")
        for key, valid in {
            "swap": (None, "source", "merged", "decisions"),
            "routing_text": ("heldout", "calibration"),
        }.items():
            if getattr(self, key) not in valid:
                raise ValueError(f"{key}={getattr(self, key)}: expected one of {', '.join(map(str, valid))}")
