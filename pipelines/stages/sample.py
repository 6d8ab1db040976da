"""The sample stage: one domain's calibration set, in the composition asked for (METHOD section 7).

srccrt: the source model answers the prompts greedily, and the correct responses stay; srcall: all of them stay.
gt: the data's reference responses. prompt: prompts alone. c4: text of no domain. `target` counts what is kept, not
what is drawn, so that sets of different compositions and domains have one size.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from eval.config import EngineConfig
from pipelines.data import draw_records
from pipelines.data.source import DataSource
from pipelines.runner.estimate import SMALL_GB, Estimate, ModelSize, Work
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node, Stage
from pipelines.stages.inputs import A_GPU, RECORDS, generating, model, require_engine

Record = dict[str, Any]
Ask = Callable[[list[Record]], Sequence[tuple[Record, str | None, bool]]]
Compose = Callable[[Record, str | None, bool], Record | str]  # the record as it is kept, or why it is left out

_ROUND = 64  # prompts that a round asks at least

log = logging.getLogger(__name__)


@dataclass
class SampleBudgetConfig:
    """How long a calibration response may be, and how many must be left."""

    max_new_tokens: int = 1024
    """Tokens per response."""

    target: int | None = None
    """Records kept per domain, in every composition: prompts are drawn until they are there (null: all prompts)."""

    min_kept: int = 100
    """Records that must be left; with fewer, the stage fails."""

    seed: int = 0
    """Of the engine's requests; greedy responses do not depend on it."""

    def __post_init__(self) -> None:
        """Refuses a target that would always fail when the configuration is composed."""
        if self.target is not None and self.target < max(1, self.min_kept):
            raise ValueError(
                f"scale.sample.target={self.target}: expected at least 1, and no less than "
                f"scale.sample.min_kept={self.min_kept}"
            )


@dataclass
class SampleConfig(SampleBudgetConfig):
    """One domain's calibration set."""

    source: str | None = None
    """The domain's source model, a folder or hub id (null: input `source`)."""

    data: DataSource = MISSING
    """The prompts."""

    composition: str = "srccrt"
    """srccrt, srcall, gt, prompt or c4."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """What generates."""

    judges: str | None = None
    """Hash of the judges that plugins registered (null: none)."""


def sample(config: SampleConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes `<composition>.jsonl`, the calibration records, and `rejected.jsonl`, those left out and why.

    Args:
        config: prompts, composition, and how responses are generated.
        inputs: `source`, the domain's source model (or `config.source`, a hub id); `world` for data paths `world:…`.
        out: the stage's directory.

    Returns:
        kept; of, the prompts drawn up to the last that was kept; share; both counts by task; work_seconds, with an
        open engine.

    Raises:
        ValueError: an unknown composition, or fewer than `config.min_kept` records left.
    """
    if config.composition not in COMPOSITIONS:
        raise ValueError(f"unknown composition '{config.composition}'; valid: {', '.join(sorted(COMPOSITIONS))}")
    records = draw_records(config.data, inputs.get("world"))
    with _asking(config, inputs) as ask:
        began = time.perf_counter()
        kept, rejected = _draw(records, ask, COMPOSITIONS[config.composition], config.target)
        seconds = time.perf_counter() - began
    _write(out / f"{config.composition}.jsonl", kept)
    _write(out / "rejected.jsonl", rejected)
    drawn = len(kept) + len(rejected)
    share = len(kept) / drawn
    log.info("%s: kept %d of %d (%.1f %%)", config.data.path, len(kept), drawn, 100 * share)
    if len(kept) < config.min_kept:
        raise ValueError(
            f"{config.data.path}: kept {len(kept)} of {drawn} records ({100 * share:.1f} %), fewer than "
            f"min_kept={config.min_kept}; those left out are in {out / 'rejected.jsonl'}. Take more prompts, a better "
            "source model or calibration_data=prompt, or lower scale.sample.min_kept"
        )
    if config.target is not None and len(kept) < config.target:
        log.warning(
            "%s: kept %d of the %d records asked for: the data end there, and sets may differ in size",
            config.data.path, len(kept), config.target,
        )  # fmt: skip
    tasks = sorted({str(record["task"]) for record in [*kept, *rejected]})
    by_task = {task: {"kept": _count(kept, task), "of": _count([*kept, *rejected], task)} for task in tasks}
    return {"kept": len(kept), "of": drawn, "share": share, "tasks": by_task, "work_seconds": seconds}


def _count(records: list[Record], task: str) -> int:
    return sum(str(record["task"]) == task for record in records)


def _write(path: Path, records: list[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _draw(
    records: Iterator[Record], ask: Ask, compose: Compose, target: int | None
) -> tuple[list[Record], list[Record]]:
    """The first `target` records that are kept (None: all), in the data's order, and those left out before the last."""
    kept: list[Record] = []
    rejected: list[Record] = []
    while batch := list(islice(records, _prompts(target, len(kept), len(rejected)))):
        for record, response, right in ask(batch):
            if len(kept) == target:
                break
            made = compose(record, response, right)
            if isinstance(made, str):
                rejected.append({**record, "response": response, "reason": made})
            else:
                kept.append(made)
        if len(kept) == target:
            break
    return kept, rejected


def _prompts(target: int | None, kept: int, rejected: int) -> int | None:
    """How many prompts a round asks: as many as should do, by the share kept so far (None: all there are)."""
    if target is None:
        return None
    share = kept / (kept + rejected) if kept + rejected else 1.0
    return max(_ROUND, math.ceil((target - kept) / max(share, 0.1)))


def correct_source_response(record: Record, response: str | None, right: bool) -> Record | str:
    """SrcCrt: the source model's greedy response, if it is correct."""
    if response is None:
        return "no response"
    return {**record, "response": response, "messages": None} if right else "wrong"


def any_source_response(record: Record, response: str | None, right: bool) -> Record | str:
    """SrcAll: the source model's greedy response, right or wrong."""
    return "no response" if response is None else {**record, "response": response, "messages": None}


def reference_answer(record: Record, response: str | None, right: bool) -> Record | str:
    """GT: the data's own reference response; nothing is generated."""
    return record if record.get("response") else "no reference response"


def prompt_alone(record: Record, response: str | None, right: bool) -> Record | str:
    """Prompt: nothing is generated, the router sees user turns only."""
    return {**record, "response": None, "messages": None}


def generic_text(record: Record, response: str | None, right: bool) -> Record | str:
    """C4: the data is text of no domain, and is taken as it is."""
    return record


COMPOSITIONS: dict[str, Compose] = {
    "srccrt": correct_source_response,
    "srcall": any_source_response,
    "gt": reference_answer,
    "prompt": prompt_alone,
    "c4": generic_text,
}
GENERATED = ("srccrt", "srcall")


@contextmanager
def _asking(config: SampleConfig, inputs: dict[str, Path]) -> Iterator[Ask]:
    """Within it, the source model answers; for compositions that need no model, nobody does."""
    if config.composition not in GENERATED:
        yield lambda records: [(record, None, False) for record in records]
        return
    from pipelines.data.responses import answering

    source = str(model(inputs, "source", config.source))
    with answering(source, config.engine, max_new_tokens=config.max_new_tokens, seed=config.seed) as ask:
        yield ask


def needs(node: Node, size: ModelSize) -> Estimate:
    """The engine holds the weights and its cache."""
    return Estimate(resources(node, size).anywhere_gb, SMALL_GB)


def check(node: Node) -> None:
    """The engine, where responses are generated; raises as `require_engine`."""
    if node.config.composition in GENERATED:
        require_engine(node.config.engine)


def resources(node: Node, size: ModelSize) -> Resources:
    """Those of the engine, where responses are generated."""
    return generating(node.config.engine, size) if node.config.composition in GENERATED else Resources(memory_gb=1)


def work(node: Node, size: ModelSize) -> Work:
    """A response to each prompt; twice as many prompts as are kept where only correct ones are."""
    if node.config.composition not in GENERATED:
        return Work(seconds=10)
    prompts = (1 + (node.config.composition == "srccrt")) * (node.config.target or RECORDS / 2)
    return Work(generated=size.forward(prompts * size.answer(node.config.max_new_tokens)), gigabytes=size.model)


SPEC = Stage("sample", SampleConfig, sample, needs, resources, work, version=2, preflight=check, remedy=A_GPU)
