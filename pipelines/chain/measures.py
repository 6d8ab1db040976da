"""The nodes that measure a model: its cost, its routing, its answers."""

import dataclasses
from pathlib import Path

from eval.judges.registry import judges_digest
from pipelines.chain.nodes import NodeBuilder, located
from pipelines.config import EvaluateConfig
from pipelines.data.source import DataSource
from pipelines.runner.stage import Node
from pipelines.stages import cost, diagnose, evaluate, replay, validate
from pipelines.stages.inputs import device


class CellBuilder(NodeBuilder):
    """Builds all nodes of a configuration: of the models, as its base does, and of what is measured of them."""

    def cost(self, measured: Node) -> Node:
        """The cost of a stage, measured by running it again."""
        settings = cost.CostConfig(measured.stage, measured.config, self.config.cost_repeats, device())
        return Node(cost.SPEC, measured.label, settings, measured.inputs)

    def diagnose(self, model: Node) -> Node:
        heldout = self.config.routing_text != "calibration"
        stage = diagnose.DiagnoseConfig(
            sources=self.source_ids,
            heldout={name: self._routing_text(name) for name in self.domains} if heldout else {},
            max_length=self.scale.max_length,
            dtype=self.scale.dtype,
        )
        text = self.world if heldout else self.calibration_data()
        return Node(diagnose.SPEC, model.label, stage, {"model": model, **self.source_inputs(), **text})

    def _routing_text(self, name: str) -> DataSource:
        domain = self.domains[name]
        if self.config.routing_text == "heldout":
            return domain.heldout
        if domain.sft_validation is None:
            raise ValueError(
                f"scale {self.scale.name} has no validation text of {name}'s fine-tuning data (routing_text=sft): "
                f"set scale.domains.{name}.sft_validation"
            )
        return domain.sft_validation

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
