"""Registers the typed schema of every config group, so that conf/ files are checked when they are composed."""

from hydra.core.config_store import ConfigStore

from pipelines import config
from pipelines.config import merging
from pipelines.config.engine import LocalEngineConfig, RayEngineConfig, SlurmEngineConfig
from pipelines.stages.calibrate import CalibrateConfig, HarcConfig
from pipelines.stages.repair import RepairConfig
from pipelines.stages.router_sft import RouterSftConfig
from pipelines.sweep.combinations import register_resolvers

CALIBRATE: dict[str, type] = {
    "none": CalibrateConfig,
    "harc": HarcConfig,
    "repair": RepairConfig,
    "router_sft": RouterSftConfig,
}
ENGINES: dict[str, type] = {"local": LocalEngineConfig, "ray": RayEngineConfig, "slurm": SlurmEngineConfig}


def register() -> None:
    """Names each dataclass `/schema/<group>/<option>`, which the file conf/<group>/<option>.yaml extends.

    The options of `merge` have no files: they are the registered methods.
    """
    register_resolvers()
    merging.register_resolvers()
    store = ConfigStore.instance()
    store.store(name="schema", node=config.Config)
    store.store(group="schema/scale", name="scale", node=config.ScaleConfig)
    for name, node in merging.merge_options().items():
        store.store(group="merge", name=name, node=node)
    for name, node in CALIBRATE.items():
        store.store(group="schema/calibrate", name=name, node=node)
    for name, node in ENGINES.items():
        store.store(group="schema/engine", name=name, node=node)
    store.store(group="schema/calibration_data", name="calibration_data", node=config.CalibrationDataConfig)
    store.store(group="schema/evaluate", name="evaluate", node=config.EvaluateConfig)
    store.store(group="schema/tracker", name="tracker", node=config.TrackerConfig)
