"""What the command line composes: one dataclass a group, and the root. All defaults are in conf/ or here, once.

Hydra composes conf/ against these, so that a wrong key or type fails before anything runs. The configuration of a
stage, which its key is hashed from, stands in the stage's own file.
"""

from pipelines.config.evaluate import CalibrationDataConfig, EvaluateConfig
from pipelines.config.experiment import ExperimentConfig, TrackerConfig
from pipelines.config.merging import MergeConfig
from pipelines.config.root import Config
from pipelines.config.scale import DomainConfig, ScaleConfig

__all__ = [
    "CalibrationDataConfig",
    "Config",
    "DomainConfig",
    "EvaluateConfig",
    "ExperimentConfig",
    "MergeConfig",
    "ScaleConfig",
    "TrackerConfig",
]
