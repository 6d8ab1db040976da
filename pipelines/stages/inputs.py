"""What several stages need: models that a stage made or the config names, calibration text, a device, an engine."""

from __future__ import annotations

import dataclasses
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.data.calibration import calibration_records
from pipelines.runner.resources import Resources, on_gpus

if TYPE_CHECKING:
    from eval.config import EngineConfig
    from harc.tokens import TokenSequence
    from pipelines.runner.estimate import ModelSize
    from pipelines.runner.stage import Node
    from pipelines.training.settings import TrainConfig

RECORDS = 500  # calibration records of a domain, where the scale names no target
TOKENS = 512  # about what a conversation of the paper's data holds


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
        records = calibration_records(inputs[f"data_{name}"])
        if fraction < 1:
            random.Random(f"{seed}|{name}").shuffle(records)
            records = records[: max(1, round(fraction * len(records)))]
        text[name] = encode(tokenizer, records, max_length)
    return text


def calibration_tokens(node: Node) -> float:
    """About how many tokens the calibration text of all domains has that a node reads: for estimates."""
    records = [up.config.target or RECORDS for name, up in node.inputs.items() if name.startswith("data_")]
    return sum(records) * about_tokens(node.config.max_length)


def about_tokens(max_length: int | None) -> float:
    """About how many tokens a conversation has: for estimates."""
    return min(TOKENS, 0.3 * (max_length or TOKENS))


def generating(engine: EngineConfig, size: ModelSize) -> Resources:
    """What an engine needs: the weights and its cache, on the GPUs that share a model."""
    return on_gpus(engine.tensor_parallel_size, 0.3 * size.model, size.model)


def training(node: Node, memory_gb: float, size: ModelSize) -> Resources:
    """What a training needs: a GPU for each process, its state shared between them, on as many machines as it spans."""
    launch = node.options.get("launch")
    if launch is None:
        return on_gpus(1, size.model, memory_gb)
    own = on_gpus(launch.processes // launch.nodes, size.model, memory_gb / launch.nodes)
    return dataclasses.replace(own, nodes=launch.nodes)


def trained_tokens(train: TrainConfig, one_pass: float) -> float:
    """About how many tokens a training reads, padding left aside.

    Args:
        train: its settings.
        one_pass: tokens of its data.
    """
    if train.steps is None:
        return one_pass * (train.epochs or 0)
    length = train.max_length if train.packing else about_tokens(train.max_length)
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
