"""The group `engine`: what makes the stages of a run, and where."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class StageEngineConfig:
    """What every engine has: what stages may use of a machine."""

    kind: str = MISSING
    """local: processes of this machine; ray: tasks of a Ray cluster; slurm: jobs of SLURM."""

    cores: int | None = None
    """CPU cores (null: all that this process may use; of a cluster, all that its nodes have)."""

    gpus: int | None = None
    """GPUs (null: all that this process sees; of a cluster, all that its nodes have)."""

    memory_gb: float | None = None
    """Host memory, gigabytes (null: all that there is)."""

    gpu_memory_gb: float | None = None
    """Memory of a GPU, gigabytes (null: what the smallest here has); with plan=true also of GPUs that are elsewhere."""


@dataclass
class LocalEngineConfig(StageEngineConfig):
    """Processes of this machine, within what is given to them here."""

    kind: str = "local"
    """local."""


@dataclass
class RayEngineConfig(StageEngineConfig):
    """Tasks of Ray, on a cluster that runs or on one that is started here and ends with the run."""

    kind: str = "ray"
    """ray."""

    address: str | None = None
    """Of a running cluster: auto (the one of this machine), or ADDRESS:PORT of its head (null: one is started here)."""


@dataclass
class SlurmEngineConfig(StageEngineConfig):
    """Jobs of SLURM, each a stage. Cores, GPUs and memory are those of a node (null: SLURM is asked)."""

    kind: str = "slurm"
    """slurm."""

    nodes: int | None = None
    """Nodes of the partition that the plan counts on, 1 or more (null: all that are up)."""

    partition: str | None = None
    """Partition that jobs go to (null: the cluster's default)."""

    account: str | None = None
    """Account that they are charged to (null: the user's default)."""

    hours: float = 24.0
    """Time limit of a job; one that reaches it is queued again, and goes on where its stage resumes."""

    memory_margin_gb: float = 4.0
    """Asked for beyond what a stage says it takes, gigabytes: SLURM ends a job that takes more than it asked for."""

    setup: list[str] = field(default_factory=list)
    """Lines of shell before each job, for modules, say: [module load cuda/12.8]."""

    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, by their long names: {qos: high, constraint: a100}."""

    wait: bool = True
    """Whether the command waits for its jobs; false: it ends when they are queued, and a last job makes the report."""

    look_seconds: float = 10.0
    """Between two questions to SLURM about the jobs."""

    def __post_init__(self) -> None:
        """Refuses amounts that are none."""
        for key in ("hours", "look_seconds"):
            if getattr(self, key) <= 0:
                raise ValueError(f"engine.{key}={getattr(self, key)}: expected more than 0")
