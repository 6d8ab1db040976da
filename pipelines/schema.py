"""Registers the typed schema of every config group, so that conf/ files are checked when they are composed."""

from hydra.core.config_store import ConfigStore

from pipelines import config
from pipelines.cells import register_resolver


def register() -> None:
    """Names each dataclass `/schema/<group>/<option>`; the file conf/<group>/<option>.yaml extends it."""
    register_resolver()
    store = ConfigStore.instance()
    store.store(name="schema", node=config.Config)
    store.store(group="schema/scale", name="scale", node=config.ScaleConfig)
    for node in (
        config.NoMergeConfig,
        config.BaseModelConfig,
        config.AverageConfig,
        config.TaskArithmeticConfig,
        config.TiesConfig,
        config.DareConfig,
        config.DellaConfig,
        config.SceConfig,
        config.WudiConfig,
        config.FisherConfig,
        config.RegMeanConfig,
    ):
        store.store(group="schema/merge", name=node.method, node=node)
    store.store(group="schema/calibrate", name="none", node=config.CalibrateConfig)
    store.store(group="schema/calibrate", name="harc", node=config.HarcConfig)
    store.store(group="schema/calibration_data", name="calibration_data", node=config.CalibrationDataConfig)
    store.store(group="schema/evaluate", name="evaluate", node=config.EvaluateConfig)
    store.store(group="schema/tracker", name="tracker", node=config.TrackerConfig)
