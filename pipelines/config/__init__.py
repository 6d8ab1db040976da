"""The typed configuration: one dataclass a group and a stage, all defaults in conf/ or here, once.

Hydra composes conf/ against these, so a wrong key or type fails before anything runs. A stage's dataclass is also what
its key is hashed from: a field here is a reason to make the stage again.
"""

from pipelines.config.data import (
    CalibrationDataConfig,
    DataSource,
    DomainConfig,
    WorldConfig,
)
from pipelines.config.measuring import (
    CalibrateConfig,
    CalibrateStageConfig,
    CostConfig,
    DiagnoseConfig,
    EvaluateConfig,
    EvaluateStageConfig,
    HarcConfig,
    SampleBudgetConfig,
    SampleConfig,
    SwapConfig,
)
from pipelines.config.merging import (
    AverageConfig,
    BaseModelConfig,
    DareConfig,
    DellaConfig,
    FisherConfig,
    MergeConfig,
    MergeStageConfig,
    NoMergeConfig,
    RegMeanConfig,
    SceConfig,
    TaskArithmeticConfig,
    TiesConfig,
    WudiConfig,
)
from pipelines.config.root import (
    Config,
    ExperimentConfig,
    ScaleConfig,
    SizeConfig,
    TrackerConfig,
)
from pipelines.config.training import (
    ArchitectureConfig,
    FinetuneConfig,
    LaunchConfig,
    PretrainConfig,
    SftConfig,
    TrainConfig,
)

__all__ = [
    "ArchitectureConfig",
    "AverageConfig",
    "BaseModelConfig",
    "CalibrateConfig",
    "CalibrateStageConfig",
    "CalibrationDataConfig",
    "Config",
    "CostConfig",
    "DareConfig",
    "DataSource",
    "DellaConfig",
    "DiagnoseConfig",
    "DomainConfig",
    "EvaluateConfig",
    "EvaluateStageConfig",
    "ExperimentConfig",
    "FinetuneConfig",
    "FisherConfig",
    "HarcConfig",
    "LaunchConfig",
    "MergeConfig",
    "MergeStageConfig",
    "NoMergeConfig",
    "PretrainConfig",
    "RegMeanConfig",
    "SampleBudgetConfig",
    "SampleConfig",
    "ScaleConfig",
    "SceConfig",
    "SftConfig",
    "SizeConfig",
    "SwapConfig",
    "TaskArithmeticConfig",
    "TiesConfig",
    "TrackerConfig",
    "TrainConfig",
    "WorldConfig",
    "WudiConfig",
]
