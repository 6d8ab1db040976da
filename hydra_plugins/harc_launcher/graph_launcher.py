"""`hydra/launcher=graph`: the jobs of a multirun as one graph of stages (pipelines/sweep/launch.py).

Hydra imports this with every command, so that all else is imported when it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GraphLauncherConf:
    """It has no settings; those of what makes the stages are in the group `engine`."""

    _target_: str = "hydra_plugins.harc_launcher.graph_launcher.GraphLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="graph", node=GraphLauncherConf, provider="harc")


class GraphLauncher(Launcher):
    """See `pipelines.sweep.launch.launch`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called once by Hydra, with the multirun's own configuration."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra's sweeper with the overrides of each job."""
        from pipelines.sweep.launch import launch

        return launch(self.hydra_context, self.task_function, self.config, job_overrides, initial_job_idx)
