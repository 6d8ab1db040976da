"""The groups `evaluate` and `calibration_data`: how accuracy is measured, and what routers are calibrated on."""

from dataclasses import dataclass

from pipelines.stages.evaluate import SamplingConfig


@dataclass
class EvaluateConfig(SamplingConfig):
    """How accuracy is measured."""

    engine: str = "vllm"
    """vllm or transformers."""

    tasks: list[str] | None = None
    """Columns to measure (null: all; []: none)."""

    split: str = "test"
    """test, or validation: problems to choose settings on."""

    allow_unsandboxed: bool = False
    """Run generated code even where the sandbox does not hold."""

    def __post_init__(self) -> None:
        """Refuses values that nothing could be measured with when the configuration is composed."""
        super().__post_init__()
        if self.split not in ("test", "validation"):
            raise ValueError(f"evaluate.split={self.split}: expected test or validation")


@dataclass
class CalibrationDataConfig:
    """What routers are calibrated on."""

    composition: str = "srccrt"
    """srccrt, srcall, gt, prompt or c4, see pipelines/stages/sample.py."""

    fraction: float = 1.0
    """Fraction of each domain's records that HARC takes, above 0, at most 1 (merging methods take all)."""

    seed: int = 0
    """Which records those are."""

    def __post_init__(self) -> None:
        """Refuses a fraction out of range when the configuration is composed."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"calibration_data.fraction={self.fraction}: expected a number above 0, at most 1")
