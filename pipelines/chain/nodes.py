"""The nodes that a composed configuration's stages are: one method a stage, shared by key between cells."""

import dataclasses
from typing import Any

from eval.judges.registry import judges_digest
from harc.merging.registry import find_method
from harc.solver.objectives import find_objective
from pipelines.config import CalibrationDataConfig, Config, DomainConfig
from pipelines.config.merging import merge_settings, plugin_of
from pipelines.data.source import DataSource
from pipelines.places import on_disk
from pipelines.runner.stage import Node
from pipelines.stages import (
    calibrate,
    finetune,
    merge,
    pretrain,
    random_base,
    repair,
    router_sft,
    sample,
    sft,
    stand_ins,
    swap,
    world,
)

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


def located(name: str | None) -> str | None:
    """A local path made absolute; a hub id, a `world:` path or None as it is.

    Raises:
        FileNotFoundError: something that can only be a local path, and isn't there.
    """
    if name is None or name.startswith("world:"):
        return name
    path = on_disk(name)
    return name if path is None else str(path.resolve())
