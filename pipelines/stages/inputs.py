"""What several stages need: models that a stage made or the config names, calibration text, a device, an engine."""

from __future__ import annotations

import dataclasses
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.calibration import calibration_records
from pipelines.runner.estimate import LOADED_GB
from pipelines.runner.resources import Resources, on_gpus

if TYPE_CHECKING:
    from eval.config import EngineConfig
    from harc.tokens import TokenSequence
    from pipelines.runner.estimate import ModelSize
    from pipelines.runner.stage import Node
    from pipelines.training.settings import TrainConfig

RECORDS = 500  # calibration records of a domain, where the scale names no target
MORE_GPUS = "give it GPUs that share weights and optimizer (launch.processes=8 launch.accelerate=fsdp)"
A_GPU = "give it a GPU with that much memory, or share the model between several (scale.engine.tensor_parallel_size)"
ENGINE_GB = 1.5  # a process that has opened vLLM, without weights and cache
STATES = 1.2  # what streaming a model's layers over hidden states holds beside these and a layer (docs/performance.md)


def model(inputs: dict[str, Path], name: str, given: str | None) -> Path | str:
    """The model that a stage made, or else the one that the config names.

    Raises:
        ValueError: neither is there.
    """
    found = inputs.get(name) or given
    if found is None:
        raise ValueError(f"no model {name}: neither a stage made it nor does the config name it")
    return found


def sources_of(ids: dict[str, str | None], inputs: dict[str, Path]) -> dict[str, Path | str]:
    """Domain -> its source model, made by a stage or named in the config, in the order of the domains."""
    return {name: model(inputs, f"source_{name}", given) for name, given in ids.items()}


def calibration_text(
    sources: dict[str, Path | str], inputs: dict[str, Path], max_length: int, fraction: float = 1.0, seed: int = 0
) -> dict[str, list[TokenSequence]]:
    """Tokens of each domain's calibration records, or of a fraction drawn by the seed; a larger one holds a smaller."""
    from harc.tokens import encode, load_tokenizer

    text = {}
    for name, source in sources.items():
        tokenizer = load_tokenizer(source)
        records = chosen_records(inputs[f"data_{name}"], name, fraction, seed)
        text[name] = encode(tokenizer, records, max_length)
    return text


def asked_records(node: Node) -> float:
    """How many calibration records of all domains a node reads, about: for estimates."""
    return sum(up.config.target or RECORDS for name, up in node.inputs.items() if name.startswith("data_"))


def chosen_records(sampled: Path, domain: str, fraction: float, seed: int) -> list[dict[str, Any]]:
    """A domain's calibration records, or a fraction of them drawn by the seed; a larger one holds a smaller."""
    records = calibration_records(sampled)
    if fraction < 1:
        random.Random(f"{seed}|{domain}").shuffle(records)
        records = records[: max(1, round(fraction * len(records)))]
    return records


def calibration_tokens(node: Node, size: ModelSize) -> float:
    """About how many tokens the calibration text of all domains has that a node reads: for estimates."""
    return asked_records(node) * getattr(node.config, "fraction", 1.0) * size.record(node.config.max_length)


def streaming(size: ModelSize, states_gb: float, layers: int, passes: float) -> Resources:
    """What a stage needs that takes hidden states through models layer by layer.

    Args:
        size: of the models.
        states_gb: hidden states that are held on the host, in memory-mapped files where there is too little memory.
        layers: of how many models are in memory at once.
        passes: how often a layer reads or writes each hidden state.
    """
    weights = STATES * max(layers * size.layer, size.outer)
    host = LOADED_GB + STATES * states_gb
    return dataclasses.replace(on_gpus(1, host, weights), mappable_gb=states_gb, passes=passes * size.size.layers)


def generating(engine: EngineConfig, size: ModelSize) -> Resources:
    """What an engine needs: the weights and its cache, on the GPUs that share a model."""
    return on_gpus(engine.tensor_parallel_size, ENGINE_GB + 0.3 * size.model, size.model + engine.kv_cache_gb)


def training(node: Node, memory_gb: float, size: ModelSize) -> Resources:
    """What a training needs: a GPU for each process, its state shared between them."""
    launch = node.options.get("launch")
    return on_gpus(launch.processes if launch else 1, size.model, memory_gb)


def trained_tokens(train: TrainConfig, one_pass: float, size: ModelSize) -> float:
    """About how many tokens a training reads, padding left aside.

    Args:
        train: its settings.
        one_pass: tokens of its data.
        size: of the model.
    """
    if train.steps is None:
        return one_pass * (train.epochs or 0)
    length = train.max_length if train.packing else size.record(train.max_length)
    return train.steps * train.batch_size * length


def device() -> str:
    """Where models run: the first GPU, if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_engine(engine: EngineConfig) -> None:
    """Checks that answers can be generated and judged here.

    Raises:
        ImportError: a package isn't installed; says how to install it or do without.
    """
    if engine.kind == "vllm" and find_spec("vllm") is None:
        raise ImportError(
            "vllm is not installed, and evaluate.engine=vllm needs it: `make setup` installs it (CPU build); on GPUs "
            "`pip install 'harc[gpu]'`; evaluate.engine=transformers does without, more slowly"
        )
    if find_spec("evalplus") is None:
        raise ImportError("evalplus is not installed, and generated code is judged by it: run `make setup`")
