"""Where text comes from: data sources, domains, the tiny world, and the calibration set's composition."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DataSource:
    """Where examples come from, and which of them.

    path: a Hugging Face dataset id, a local file or folder, or `world:<file>` for a file of the tiny world.
    format: the adapter of pipelines/data.py that turns a row into a record.
    where: column -> accepted values; a row must match all of them.
    """

    path: str = MISSING
    format: str = "records"
    name: str | None = None
    split: str = "train"
    where: dict[str, list[str]] = field(default_factory=dict)
    skip: int = 0
    limit: int | None = None
    shuffle_seed: int | None = None


@dataclass
class DomainConfig:
    """One domain: what its source is tuned on, calibrated on, diagnosed on and measured on.

    finetune_steps: of this domain's source, where it takes others than the scale's fine-tuning.
    checkpoint: a fine-tuned model of your own (folder or hub id), used instead of the finetune stage.
    tasks: column of the report -> task of eval/tasks.
    task_data: task -> local data file, instead of the task's own dataset.
    validation_data: task -> data file of problems that are not the test's, to choose settings on.
    """

    train: DataSource = MISSING
    calibration: DataSource = MISSING
    heldout: DataSource = MISSING
    tasks: dict[str, str] = MISSING
    task_data: dict[str, str] = field(default_factory=dict)
    validation_data: dict[str, str] = field(default_factory=dict)
    finetune_steps: int | None = None
    checkpoint: str | None = None


@dataclass
class WorldConfig:
    """What the procedural tiny world holds.

    seed: of every choice; another seed is another world of the same kind.
    vocabulary: tokens of the tokenizer.
    max_length: longest sequence of the model, in tokens.
    pretrain: records of the pre-training mixture: arithmetic drills, code problems, and for the rest math problems.
    drills, code: share of arithmetic drills (facts, a line each) and of code problems in the mixture.
    finetune: training records a domain; a quarter of chat's tells facts of the world, the others are problems.
    calibration, heldout: records a domain.
    validation, test: problems a benchmark.
    """

    seed: int = 0
    vocabulary: int = 768
    max_length: int = 320
    pretrain: int = 30000
    drills: float = 0.25
    code: float = 0.3
    finetune: int = 10000
    calibration: int = 500
    heldout: int = 200
    validation: int = 100
    test: int = 200


@dataclass
class CalibrationDataConfig:
    """What routers are calibrated on. composition: see pipelines/sample.py.

    fraction: share of each domain's records that HARC takes; seed: which of them (merging methods take all).
    """

    composition: str = "srccrt"
    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses a share out of range when the configuration is composed."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"calibration_data.fraction={self.fraction}: expected a share above 0, at most 1")
