"""From a composed configuration to the chain of stages of its cell.

A cell is a merge (or the sources, or the base), perhaps calibrated, then diagnosed and evaluated. Stages are shared
by key: two cells that merge alike have the same merge node.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import (
    CalibrateStageConfig,
    CalibrationDataConfig,
    Config,
    DiagnoseConfig,
    DomainConfig,
    EvaluateStageConfig,
    FinetuneConfig,
    HarcConfig,
    MergeStageConfig,
    SampleConfig,
)
from pipelines.stage import Node

UNMERGED = ("individual", "base")
NEEDS_DATA = ("fisher", "regmean")


@dataclass(frozen=True)
class Cell:
    """The stages of one row: what is evaluated, and what its numbers come from.

    evaluations: one evaluate node a model; a merged cell has one, the individual sources one each.
    diagnosed_before: routing of the merge that was calibrated, the same stage as its uncalibrated row's.
    """

    config: Config
    evaluations: list[Node]
    merged: Node | None = None
    calibrated: Node | None = None
    diagnosed: Node | None = None
    diagnosed_before: Node | None = None
    columns: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, str]:
        """The labels of the table's row."""
        return {"method": self.config.merge.label, "harc": "yes" if self.calibrated else "no"}

    def nodes(self) -> list[Node]:
        """All stages in an order in which they can be made, each once."""
        ends = [*(node for node in (self.diagnosed_before, self.diagnosed) if node), *self.evaluations]
        return list({node.stage + node.key: node for end in ends for node in end.chain()}.values())


class _Builder:
    """Builds the nodes that several stages of a cell share."""

    def __init__(self, config: Config):
        self.config = config
        self.scale = config.scale
        self.domains = {name: self._domain(name) for name in config.domains}
        self.world = {}
        if self.scale.world is not None:
            self.world = {"world": Node("world", self.scale.name, self.scale.world)}
        self.base_id = located(self.scale.base)
        self.base = {} if self.base_id else {"base": self._pretrain()}
        self.source_ids = {name: located(domain.checkpoint) for name, domain in self.domains.items()}
        self.sources = {
            name: self._finetune(name, domain) for name, domain in self.domains.items() if self.source_ids[name] is None
        }

    def _domain(self, name: str) -> DomainConfig:
        if name not in self.scale.domains:
            raise ValueError(
                f"scale {self.scale.name} has no domain {name!r}; it has {', '.join(sorted(self.scale.domains))}"
            )
        return self.scale.domains[name]

    def _pretrain(self) -> Node:
        if self.scale.pretrain is None:
            raise ValueError(f"scale {self.scale.name}: set scale.base (a checkpoint) or scale.pretrain")
        return Node("pretrain", self.scale.name, self.scale.pretrain, self.world)

    def _finetune(self, name: str, domain: DomainConfig) -> Node:
        settings = FinetuneConfig(base=self.base_id, data=domain.train, train=self.scale.finetune)
        return Node(
            "finetune",
            f"{self.scale.name}-{name}",
            settings,
            {**self.base, **self.world},
            {"launch": self.config.launch},
        )

    def engine(self) -> Any:
        return dataclasses.replace(self.scale.engine, kind=self.config.evaluate.engine)

    def calibration_data(self) -> dict[str, Node]:
        """The sample stage of each domain, under the names that merge and calibrate take."""
        return {f"data_{name}": self._sample(name, domain) for name, domain in self.domains.items()}

    def _sample(self, name: str, domain: DomainConfig) -> Node:
        asked: CalibrationDataConfig = self.config.calibration_data
        settings = SampleConfig(
            **dataclasses.asdict(self.scale.sample),
            source=self.source_ids[name],
            data=domain.calibration,
            composition=asked.composition,
            engine=self.engine(),
        )
        source = {"source": self.sources[name]} if name in self.sources else {}
        return Node("sample", f"{self.scale.name}-{name}-{asked.composition}", settings, {**source, **self.world})

    def source_inputs(self) -> dict[str, Node]:
        return {f"source_{name}": node for name, node in self.sources.items()}

    def merge(self) -> Node:
        merge = self.config.merge
        if merge.method in self.scale.unsupported:
            raise ValueError(
                f"merge={merge.method} is not run at scale={self.scale.name}: {self.scale.unsupported[merge.method]}"
            )
        needs_data = merge.method in NEEDS_DATA
        settings = dataclasses.asdict(merge)
        del settings["method"], settings["label"]
        stage = MergeStageConfig(
            method=merge.method,
            settings=settings,
            base=self.base_id,
            sources=self.source_ids,
            fraction=self.config.calibration_data.fraction if needs_data else 1.0,
            max_length=self.scale.max_length,
            dtype=self.scale.dtype,
        )
        data = self.calibration_data() if needs_data else {}
        return Node("merge", f"{self.scale.name}-{merge.method}", stage, {**self.base, **self.source_inputs(), **data})

    def calibrate(self, merged: Node, harc: HarcConfig) -> Node:
        stage = CalibrateStageConfig(
            harc=harc,
            fraction=self.config.calibration_data.fraction,
            max_length=self.scale.max_length,
            dtype=self.scale.dtype,
            sources=self.source_ids,
        )
        inputs = {"merged": merged, **self.source_inputs(), **self.calibration_data()}
        return Node("calibrate", f"{merged.label}-{harc.method}", stage, inputs)

    def diagnose(self, model: Node) -> Node:
        stage = DiagnoseConfig(
            sources=self.source_ids,
            heldout={name: domain.heldout for name, domain in self.domains.items()},
            max_length=self.scale.max_length,
            dtype=self.scale.dtype,
        )
        return Node("diagnose", model.label, stage, {"model": model, **self.source_inputs(), **self.world})

    def evaluate(self, label: str, model: Node | None, model_id: str | None, domains: list[str]) -> Node:
        evaluate = self.config.evaluate
        tasks: dict[str, str | None] = {}
        for name in domains:
            domain = self.domains[name]
            for column, task in domain.tasks.items():
                if evaluate.tasks is None or column in evaluate.tasks or task in evaluate.tasks:
                    tasks[task] = located(domain.task_data.get(task))
        stage = EvaluateStageConfig(
            model=model_id,
            tasks=tasks,
            samples=evaluate.samples,
            temperature=evaluate.temperature,
            seed=evaluate.seed,
            limit=evaluate.limit,
            max_new_tokens=self.scale.max_new_tokens,
            engine=self.engine(),
        )
        return Node("evaluate", label, stage, {**({"model": model} if model else {}), **self.world})

    def columns(self) -> dict[str, tuple[str, str]]:
        """Report column -> (domain, task)."""
        return {column: (name, task) for name, domain in self.domains.items() for column, task in domain.tasks.items()}


def cell_of(config: Config) -> Cell:
    """The cell of a composed configuration.

    Raises:
        ValueError: a combination that makes no sense, or that the scale doesn't serve (the message says why).
    """
    builder = _Builder(config)
    names = list(builder.domains)
    _check_task_names(config, builder)
    if config.merge.method in UNMERGED:
        if config.calibrate.method != "none":
            raise ValueError(f"merge={config.merge.method} leaves nothing to calibrate: use calibrate=none with it")
        return _unmerged(config, builder, names)
    if len(names) < 2:
        raise ValueError(f"merging takes at least two domains, found domains={names}")
    merged = builder.merge()
    model = merged
    calibrated = before = None
    if isinstance(config.calibrate, HarcConfig):
        model = calibrated = builder.calibrate(merged, config.calibrate)
        before = builder.diagnose(merged)
    evaluation = builder.evaluate(model.label, model, None, names)
    return Cell(config, [evaluation], merged, calibrated, builder.diagnose(model), before, builder.columns())


def _unmerged(config: Config, builder: _Builder, names: list[str]) -> Cell:
    scale = config.scale.name
    if config.merge.method == "base":
        base = builder.base.get("base")
        nodes = [builder.evaluate(f"{scale}-base", base, builder.base_id, names)]
    else:
        nodes = [
            builder.evaluate(f"{scale}-{name}", builder.sources.get(name), builder.source_ids[name], [name])
            for name in names
        ]
    return Cell(config, nodes, columns=builder.columns())


def _check_task_names(config: Config, builder: _Builder) -> None:
    if config.evaluate.tasks is None:
        return
    columns = builder.columns()
    valid = {*columns, *(task for _, task in columns.values())}
    unknown = [name for name in config.evaluate.tasks if name not in valid]
    if unknown:
        raise ValueError(f"evaluate.tasks: unknown {', '.join(unknown)}; valid are {', '.join(sorted(columns))}")


def located(name: str | None) -> str | None:
    """A local path made absolute; a hub id, a `world:` path or None as it is.

    Raises:
        FileNotFoundError: something that can only be a local path, and isn't there.
    """
    if name is None or name.startswith("world:"):
        return name
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix in (".json", ".jsonl", ".gz", ".parquet"):
        raise FileNotFoundError(f"{name}: no such file or folder")
    return name
