"""The nodes that a composed configuration's stages are: one method a stage, shared by key between cells."""

import dataclasses
from pathlib import Path
from typing import Any

from eval.judges.registry import judges_digest
from harc.merging.registry import find_method
from harc.solver.objectives import find_objective
from pipelines.config import CalibrationDataConfig, Config, DomainConfig, EvaluateConfig
from pipelines.config.merging import merge_settings, plugin_of
from pipelines.data.source import DataSource
from pipelines.places import on_disk
from pipelines.runner.stage import Node
from pipelines.stages import (
    calibrate,
    cost,
    diagnose,
    evaluate,
    finetune,
    merge,
    pretrain,
    random_base,
    repair,
    replay,
    router_sft,
    sample,
    sft,
    stand_ins,
    swap,
    validate,
    world,
)
from pipelines.stages.inputs import device

Calibration = calibrate.HarcConfig | repair.RepairConfig | router_sft.RouterSftConfig


class NodeBuilder:
    """Builds the nodes of a configuration; the sources' and the base's are made once and shared by the others.

    Attributes: domains (name -> DomainConfig); base, sources (nodes, where a stage makes them); base_id, source_ids
    (where the configuration names a checkpoint instead).
    """

    def __init__(self, config: Config):
        self.config = config
        self.scale = config.scale
        self.domains = {name: self._domain(name) for name in config.domains}
        self.world = {}
        if config.rehearse:
            self.world = {"world": self._stand_ins()}
        elif self.scale.world is not None:
            self.world = {"world": Node(world.SPEC, self.scale.name, self.scale.world)}
        self.base_id = located(self.scale.base)
        self.base = {} if self.base_id else {"base": self._random() if config.rehearse else self._pretrain()}
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

    def _stand_ins(self) -> Node:
        """A rehearsal's data, in the place of the tiny world."""
        small = self.config.rehearsal
        settings = stand_ins.StandInsConfig(
            seed=self.config.seed,
            vocabulary=small.vocabulary,
            records=small.records + small.heldout,
            test=small.problems,
            formats={f"calibration/{name}": domain.calibration.format for name, domain in self.scale.domains.items()},
            where={name: domain.train.where for name, domain in self.scale.domains.items()},
        )
        return Node(stand_ins.SPEC, self.scale.name, settings)

    def _random(self) -> Node:
        """A rehearsal's base."""
        assert self.scale.architecture is not None
        settings = random_base.RandomBaseConfig(self.scale.architecture, self.scale.dtype, self.config.seed)
        return Node(random_base.SPEC, self.scale.name, settings, self.world)

    def _pretrain(self) -> Node:
        if self.scale.pretrain is None:
            raise ValueError(f"scale {self.scale.name}: set scale.base (a checkpoint) or scale.pretrain")
        return Node(pretrain.SPEC, self.model_name, self._pretraining(), self.world)

    @property
    def model_name(self) -> str:
        """The scale's name, and the architecture's where it is not the scale's main one."""
        larger = self.scale.larger if self.config.larger and not self.base_id else None
        return f"{self.scale.name}-{larger.model_type}" if larger else self.scale.name

    def _pretraining(self) -> pretrain.PretrainConfig:
        assert self.scale.pretrain is not None
        if not self.config.larger:
            return self.scale.pretrain
        if self.scale.larger is None:
            raise ValueError(f"scale {self.scale.name} has no larger architecture: set scale.larger")
        return dataclasses.replace(self.scale.pretrain, architecture=self.scale.larger)

    def _finetune(self, name: str, domain: DomainConfig) -> Node:
        train = self.scale.finetune
        if domain.finetune_steps is not None:
            train = dataclasses.replace(train, steps=domain.finetune_steps)
        settings = finetune.FinetuneConfig(base=self.base_id, data=domain.train, train=train)
        return Node(
            finetune.SPEC,
            f"{self.model_name}-{name}",
            settings,
            {**self.base, **self.world},
            {"launch": self.config.launch},
        )

    def engine(self) -> Any:
        evaluate = self.config.evaluate
        return dataclasses.replace(
            self.scale.engine, kind=evaluate.engine, allow_unsandboxed=evaluate.allow_unsandboxed
        )

    def calibration_data(self) -> dict[str, Node]:
        """The sample stage of each domain, under the names that merge and calibrate take."""
        return {f"data_{name}": self._sample(name, domain) for name, domain in self.domains.items()}

    def _sample(self, name: str, domain: DomainConfig) -> Node:
        asked: CalibrationDataConfig = self.config.calibration_data
        generic = asked.composition == "c4"
        settings = sample.SampleConfig(
            **dataclasses.asdict(self.scale.sample),
            source=None if generic else self.source_ids[name],
            data=self._generic() if generic else domain.calibration,
            composition=asked.composition,
            engine=self.engine(),
            judges=judges_digest(),
        )
        if generic:  # of no domain, so the same for all
            return Node(sample.SPEC, f"{self.scale.name}-c4", settings, self.world)
        source = {"source": self.sources[name]} if name in self.sources else {}
        return Node(sample.SPEC, f"{self.model_name}-{name}-{asked.composition}", settings, {**source, **self.world})

    def _generic(self) -> DataSource:
        if self.scale.generic is None:
            raise ValueError(f"scale {self.scale.name} has no text for calibration_data=c4: set scale.generic")
        return self.scale.generic

    def source_inputs(self) -> dict[str, Node]:
        return {f"source_{name}": node for name, node in self.sources.items()}

    def merge(self) -> Node:
        chosen = self.config.merge
        if chosen.method in self.scale.unsupported:
            raise ValueError(
                f"merge={chosen.method} is not run at scale={self.scale.name}: {self.scale.unsupported[chosen.method]}"
            )
        found = find_method(chosen.method)
        needs_data = found.kind == "data"
        plugin, digest = plugin_of(found.function)
        stage = merge.MergeStageConfig(
            method=chosen.method,
            settings=merge_settings(found, chosen, list(self.source_ids)),
            base=self.base_id,
            sources=self.source_ids,
            max_length=self.scale.max_length if needs_data else None,
            plugin=plugin,
            plugin_digest=digest,
        )
        data = self.calibration_data() if needs_data else {}
        return Node(
            merge.SPEC, f"{self.model_name}-{chosen.method}", stage, {**self.base, **self.source_inputs(), **data}
        )

    def calibrate(self, merged: Node, chosen: Calibration) -> Node:
        text: dict[str, Any] = {
            "fraction": self.config.calibration_data.fraction,
            "seed": self.config.calibration_data.seed if self.config.calibration_data.fraction < 1 else 0,
            "max_length": self.scale.max_length,
            "dtype": self.scale.dtype,
            "sources": self.source_ids,
        }
        inputs = {"merged": merged, **self.source_inputs(), **self.calibration_data()}
        label = f"{merged.label}-{chosen.label}"
        if isinstance(chosen, router_sft.RouterSftConfig):
            stage_of_routers = router_sft.RouterSftStageConfig(
                self.scale.router_sft, chosen, text["fraction"], text["seed"], text["sources"]
            )
            others = {name: node for name, node in inputs.items() if name != "merged"}
            return Node(router_sft.SPEC, label, stage_of_routers, {"model": merged, **others})
        if isinstance(chosen, repair.RepairConfig):
            return Node(repair.SPEC, label, repair.RepairStageConfig(repair=chosen, **text), inputs)
        own = find_objective(chosen.objective)
        plugin, digest = plugin_of(own) if own else (None, None)
        stage = calibrate.CalibrateStageConfig(harc=chosen, plugin=plugin, plugin_digest=digest, **text)
        return Node(calibrate.SPEC, label, stage, inputs)

    def sft(self, model: Node) -> Node:
        """The model tuned on the calibration data of all domains."""
        inputs = {"model": model, **self.calibration_data()}
        return Node(
            sft.SPEC, f"{model.label}-sft", sft.SftConfig(self.scale.sft), inputs, {"launch": self.config.launch}
        )

    def with_source_routers(self, merged: Node, name: str) -> Node:
        """The merged model with the routers of a domain's source."""
        inputs = {"model": merged, **({"routers": self.sources[name]} if name in self.sources else {})}
        return Node(swap.SPEC, f"{merged.label}-{name}-routers", swap.SwapConfig(routers=self.source_ids[name]), inputs)

    def with_merged_routers(self, merged: Node, name: str) -> Node:
        """A domain's source model with the merged routers."""
        inputs = {"routers": merged, **({"model": self.sources[name]} if name in self.sources else {})}
        label = f"{self.model_name}-{name}-{self.config.merge.method}-routers"
        return Node(swap.SPEC, label, swap.SwapConfig(model=self.source_ids[name]), inputs)

    def cost(self, measured: Node) -> Node:
        """The cost of a stage, measured by running it again."""
        settings = cost.CostConfig(measured.stage, measured.config, self.config.cost_repeats, device())
        return Node(cost.SPEC, measured.label, settings, measured.inputs)

    def diagnose(self, model: Node) -> Node:
        heldout = self.config.routing_text == "heldout"
        stage = diagnose.DiagnoseConfig(
            sources=self.source_ids,
            heldout={name: domain.heldout for name, domain in self.domains.items()} if heldout else {},
            max_length=self.scale.max_length,
            dtype=self.scale.dtype,
        )
        text = self.world if heldout else self.calibration_data()
        return Node(diagnose.SPEC, model.label, stage, {"model": model, **self.source_inputs(), **text})

    def evaluate(self, label: str, model: Node | None, model_id: str | None, domains: list[str]) -> list[Node]:
        """One node for the tasks of these domains that are asked for, none if there are none."""
        asked = self.config.evaluate
        tasks: dict[str, str | None] = {}
        records: dict[str, DataSource] = {}
        for column, (name, task) in self.columns().items():
            if name not in domains or not (asked.tasks is None or column in asked.tasks or task in asked.tasks):
                continue
            if (found := self._records(name)) is not None:
                records[name] = found
            else:
                tasks[task] = self._problems(name, task)
        validated = [self._validate(label, model, model_id, records)] if records else []
        if not tasks:
            return validated
        stage = evaluate.EvaluateStageConfig(
            model=model_id,
            tasks=tasks,
            samples=asked.samples,
            temperature=asked.temperature,
            seed=asked.seed,
            limit=asked.limit,
            task_folder=task_folder(asked),
            task_metrics=asked.task_metrics,
            max_new_tokens=self.scale.max_new_tokens,
            engine=self.engine(),
        )
        return [Node(evaluate.SPEC, label, stage, {**({"model": model} if model else {}), **self.world}), *validated]

    def replay(self, merged: Node, name: str) -> list[Node]:
        """The merged model on a domain's tasks, routed by the decisions of the domain's source."""
        return [
            Node(
                replay.SPEC,
                f"{merged.label}-{name}-decisions",
                replay.ReplayConfig(
                    **{one.name: getattr(node.config, one.name) for one in dataclasses.fields(node.config)}
                    | {"engine": dataclasses.replace(node.config.engine, kind="transformers")},
                    decisions={name: self.source_ids[name]},
                ),
                {**node.inputs, **({f"source_{name}": self.sources[name]} if name in self.sources else {})},
            )
            for node in self.evaluate(merged.label, merged, None, [name])
            if node.stage == evaluate.SPEC.name
        ]

    def _validate(self, label: str, model: Node | None, model_id: str | None, records: dict[str, DataSource]) -> Node:
        asked = self.config.evaluate
        stage = validate.ValidateConfig(
            model=model_id,
            records=records,
            max_new_tokens=self.scale.max_new_tokens or self.scale.sample.max_new_tokens,
            limit=asked.limit,
            seed=asked.seed,
            judges=judges_digest(),
            engine=self.engine(),
        )
        return Node(validate.SPEC, label, stage, {**({"model": model} if model else {}), **self.world})

    def _records(self, name: str) -> DataSource | None:
        """The held-out records that a domain's settings are chosen on, where its tasks have no validation problems."""
        domain = self.domains[name]
        own = self.config.evaluate.split == "validation" and self.config.evaluate.task_folder is None
        return domain.validation if own and not domain.validation_data else None

    def _problems(self, name: str, task: str) -> str | None:
        domain = self.domains[name]
        if self.config.evaluate.task_folder is not None:
            if self.config.evaluate.split != "test":
                raise ValueError("evaluate.task_folder: its files have no validation problems; expected split=test")
            return None  # its files name their own data
        if self.config.evaluate.split == "test":
            return located(domain.task_data.get(task))
        if task not in domain.validation_data:
            raise ValueError(
                f"scale {self.scale.name} has no validation problems for {task}: set "
                f"scale.domains.{name}.validation_data.{task} to a file in the format of the test's"
            )
        return located(domain.validation_data[task])

    def columns(self) -> dict[str, tuple[str, str]]:
        """Report column -> (domain, task).

        On validation, a domain without problems has one column, of its held-out records, and none if it has none.

        Raises:
            ValueError: no domain has anything to choose settings on.
        """
        asked = self.config.evaluate
        columns: dict[str, tuple[str, str]] = {}
        for name, domain in self.domains.items():
            if self._records(name) is not None:
                columns[validate.COLUMN.format(name)] = (name, validate.COLUMN.format(name))
            elif asked.split == "test" or asked.task_folder is not None or domain.validation_data:
                columns |= {column: (name, task) for column, task in domain.tasks.items()}
        if not columns:
            raise ValueError(
                f"scale {self.scale.name} has nothing to choose settings on for {', '.join(self.domains)}: set "
                "scale.domains.NAME.validation (records) or scale.domains.NAME.validation_data (task -> problems)"
            )
        return columns


def task_folder(asked: EvaluateConfig) -> str | None:
    """The folder of task files made absolute; `lm_eval`, or None, as it is.

    Raises:
        ValueError: there is no such folder.
    """
    if asked.task_folder is None or asked.task_folder == "lm_eval":
        return asked.task_folder
    folder = Path(asked.task_folder).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"evaluate.task_folder={asked.task_folder}: no such folder; expected lm-eval task files in one, or lm_eval"
        )
    return str(folder.resolve())


def located(name: str | None) -> str | None:
    """A local path made absolute; a hub id, a `world:` path or None as it is.

    Raises:
        FileNotFoundError: something that can only be a local path, and isn't there.
    """
    if name is None or name.startswith("world:"):
        return name
    path = on_disk(name)
    return name if path is None else str(path.resolve())
