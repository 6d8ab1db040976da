"""From a real scale's configuration to its rehearsal's: few layers, steps, records and problems; local data."""

import dataclasses

from pipelines.config import Config, DomainConfig, ScaleConfig
from pipelines.data.source import DataSource
from pipelines.runner.estimate import SizeConfig
from pipelines.stages.pretrain import ArchitectureConfig
from pipelines.training.settings import TrainConfig

SUFFIX = "_rehearsal"
UNENDING = 1e9  # tokens of an answer of random weights, which never end one
_STEPS = 2  # of iterative merging methods


def rehearsed(config: Config) -> Config:
    """The configuration of the rehearsal, where `rehearse` asks for one; else as it is.

    Raises:
        ValueError: a scale that is none of a published model.
    """
    if not config.rehearse:
        return config
    scale, small = config.scale, config.rehearsal
    if scale.architecture is None:
        raise ValueError(f"rehearse=true: scale {scale.name} names no architecture; expected scale=olmoe or qwen3")
    if config.experiment.runs or config.experiment.tool or config.experiment.dashboard:
        raise ValueError("rehearse=true: expected a table or figure, as in +experiment=table1")
    data, merge = config.calibration_data, config.merge
    if data.composition == "srccrt":  # random weights answer nothing right
        data = dataclasses.replace(data, composition="srcall")
    if getattr(merge, "steps", 0) > _STEPS:
        merge = dataclasses.replace(merge, steps=_STEPS)  # type: ignore[call-arg]
    evaluate = dataclasses.replace(config.evaluate, limit=small.problems, samples=small.samples)
    return dataclasses.replace(
        config, scale=_scale(scale, config), calibration_data=data, merge=merge, evaluate=evaluate
    )


def _scale(scale: ScaleConfig, config: Config) -> ScaleConfig:
    small = config.rehearsal
    assert scale.architecture is not None
    architecture = ArchitectureConfig(
        scale.architecture.model_type,
        {
            **scale.architecture.settings,
            "num_hidden_layers": small.layers,
            "vocab_size": small.vocabulary,
            "max_position_embeddings": scale.max_length,
        },
    )
    sample = dataclasses.replace(scale.sample, target=small.records, min_kept=1, max_new_tokens=small.max_new_tokens)
    return dataclasses.replace(
        scale,
        name=scale.name + SUFFIX,
        base=None,
        architecture=architecture,
        size=small_size(scale.size, small.layers, small.vocabulary),
        finetune=_few_steps(scale.finetune, config),
        sft=_few_steps(scale.sft, config),
        sample=sample,
        max_new_tokens=small.max_new_tokens,
        sweep_samples=small.samples,
        generic=None if scale.generic is None else _local(scale.generic, "generic", 0, small.records),
        domains={name: _domain(name, domain, config) for name, domain in scale.domains.items()},
    )


def small_size(size: SizeConfig, layers: int, vocabulary: int) -> SizeConfig:
    """The size of a model of the same width with so many layers and rows of embeddings."""
    outer = 2 * size.vocabulary * size.hidden

    def of(parameters: float) -> float:
        return (parameters - outer) / size.layers * layers + 2 * vocabulary * size.hidden

    active = None if size.active is None else of(size.active)
    return dataclasses.replace(
        size, parameters=of(size.parameters), active=active, layers=layers, vocabulary=vocabulary,
        answer_tokens=UNENDING, record_tokens=150,
    )  # fmt: skip


def _few_steps(train: TrainConfig, config: Config) -> TrainConfig:
    small = config.rehearsal
    processes = config.launch.processes
    return dataclasses.replace(
        train, steps=small.steps, epochs=None, batch_size=2 * processes, micro_batch_size=1,
        max_length=min(train.max_length, small.train_length), log_steps=1,
    )  # fmt: skip


def _domain(name: str, domain: DomainConfig, config: Config) -> DomainConfig:
    small = config.rehearsal
    return dataclasses.replace(
        domain,
        train=_local(domain.train, f"train/{name}", 0, None),
        calibration=_local(domain.calibration, f"calibration/{name}", small.heldout, small.records),
        heldout=_local(domain.heldout, f"calibration/{name}", 0, small.heldout),
        task_data={task: f"world:tasks/{task}.jsonl" for task in domain.tasks.values()},
        validation_data={},
        finetune_steps=None,
        checkpoint=None,
    )


def _local(source: DataSource, file: str, skip: int, limit: int | None) -> DataSource:
    """The same reading of a local file in the same format."""
    return dataclasses.replace(source, path=f"world:{file}.jsonl", name=None, split="train", skip=skip, limit=limit)
