"""The graph of an experiment: every distinct stage of all its cells, each once, after what it needs."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.config import Config
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node


@dataclass(frozen=True)
class Row:
    """A cell as the graph knows it."""

    name: str
    """In a few words, for people."""

    config: Config
    """From which any process can compose the cell's chain again."""

    keys: tuple[str, ...] = ()
    """Of its stages, every one after what it needs."""

    left_out: str | None = None
    """Why the cell is no row of its experiment, where it is none."""

    error: Exception | None = None
    """Why it has no stages: what composing its chain raised."""


@dataclass(frozen=True)
class Seconds:
    """How long a stage is expected to take, and where the figure comes from."""

    value: float
    """Wall time, seconds."""

    source: str
    """`measured` (like stages that were made), `rehearsed` (the stage's own account of its work at rates measured in a
    rehearsal), or `estimated` (at typical rates)."""


@dataclass(frozen=True)
class Task:
    """One stage to be made."""

    node: Node
    """The stage, its settings and its inputs."""

    rows: tuple[int, ...]
    """Numbers of the rows that need it; the configuration of the first says how to make it."""

    resources: Resources
    """What it needs while it is made."""

    seconds: Seconds
    """How long it is expected to take."""

    disk_gb: float
    """What it leaves on disk, gigabytes."""

    scratch_gb: float = 0.0
    """What it has on disk beside that while it is made, mapped hidden states among it, gigabytes."""

    there: bool = False
    """Whether it was whole in the outputs folder when the graph was made."""

    @property
    def key(self) -> str:
        """The stage's key: twelve hexadecimal digits, one for equal work."""
        return self.node.key

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.node.stage

    @property
    def label(self) -> str:
        """What its directory is called before the key."""
        return self.node.label

    @property
    def name(self) -> str:
        """Stage, label and key, as a file name."""
        return f"{self.stage}-{self.label}-{self.key}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the tasks that have to be made before it."""
        return tuple(dict.fromkeys(node.key for node in self.node.inputs.values()))


@dataclass(frozen=True)
class Graph:
    """All tasks of a multirun."""

    rows: list[Row]
    """The cells, in the order of the sweep."""

    tasks: dict[str, Task] = field(default_factory=dict)
    """Key -> task, every one after those that it needs."""

    outputs: Path = Path("outputs")
    """The folder that stages go to."""

    @property
    def missing(self) -> list[Task]:
        """The tasks that are yet to be made, in order."""
        return [task for task in self.tasks.values() if not task.there]

    def without(self, keys: Collection[str]) -> "Graph":
        """The graph without these tasks."""
        return dataclasses.replace(self, tasks={key: task for key, task in self.tasks.items() if key not in keys})

    def config_of(self, key: str) -> Config:
        """The configuration of a cell that needs the task: all that another process has to know to make it."""
        return self.rows[self.tasks[key].rows[0]].config

    def behind(self, keys: Sequence[str]) -> set[str]:
        """The keys of all tasks that cannot be made without one of these, without these."""
        lost = set(keys)
        for key, task in self.tasks.items():
            if lost.intersection(task.needs):
                lost.add(key)
        return lost - set(keys)
