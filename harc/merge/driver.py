"""`merge`: reading, checking and writing around the methods.

Methods without data go tensor by tensor, the next ones read while one is merged: memory holds a few tensors of each
source, never a model. Work is done in float32; the result keeps the dtype of the base.
"""

import hashlib
import logging
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from harc.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    atomic_directory,
    check_finite,
    check_sources,
    copy_extras,
    open_checkpoint,
)
from harc.checkpoint.write import MAX_SHARD_BYTES
from harc.merge import average, dare, data_methods, della, sce, task_arithmetic, ties, wudi  # noqa: F401  (they register)
from harc.merge.data_methods import DataMerge
from harc.merge.registry import METHODS, Method, find_method
from harc.merge.settings import MergeSettings
from harc.tokens import TokenSequence

logger = logging.getLogger(__name__)

__all__ = ["METHODS", "MergeReport", "merge"]

_BLOCK = re.compile(r"\.\d+\.")  # a name with a number in it lies in a decoder layer
_BATCH_BYTES = 1 << 26  # of one source's float32 weights in a batch of same-shaped matrices


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. seconds: wall time; notes: differences between the sources that did not stop it."""

    method: str
    out: Path
    tensors: int
    parameters: int
    seconds: float
    weights: list[float]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def merge(
    method: str,
    sources: Sequence[str | Path],
    base: str | Path | None,
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    data: Sequence[Sequence[TokenSequence]] | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
    seed: int = 0,
    device: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **settings: Any,
) -> MergeReport:
    """Merges checkpoints into a complete one, in the published layout, written atomically to `out`.

    Args:
        method: a name in `harc.merge.METHODS`.
        sources: the models to merge, local folders or hub ids.
        base: what they were fine-tuned from; None for methods that need no task vectors.
        out: a folder that is not there yet (or is empty).
        weights: one a source, for the methods that have them.
        data: for Fisher and RegMean, one list of sequences a source.
        dtype: of the result; as stored in the base (or first source) when None.
        progress: whether to draw a progress bar.
        seed: for DARE, DELLA and Fisher's sampled labels; a tensor's draws depend on it and the tensor's name alone.
        device: where tensors are merged and sources run: `auto`, `cpu`, `cuda`, …
        max_shard_bytes: of a weight file of the result.
        settings: the method's own; its dataclass in `harc.merge.settings` lists them.

    Raises:
        ValueError: an unknown method or setting, weights or data that don't fit.
        CheckpointError: sources that cannot be read or merged, or an `out` that is there already: before any work.
    """
    start = time.perf_counter()
    found = find_method(method)
    if weights is not None:
        settings["weights"] = list(weights)
    configured = found.configure(settings)
    if not sources:
        raise ValueError("no sources to merge")
    resolved = configured.resolved_weights(len(sources))
    _check_data(found, data, sources)
    opened = [open_checkpoint(source) for source in sources]
    original = open_checkpoint(base) if base is not None else None
    if found.uses_base and original is None:
        raise ValueError(f"merge method {method} merges task vectors: it needs the base model")
    reference = original or opened[0]
    notes = check_sources(reference, opened)
    for note in notes:
        logger.warning("%s", note)
    specs = {name: (_output_dtype(info.dtype, dtype), info.shape) for name, info in reference.tensors.items()}
    size = sum(prod(shape) * kind.itemsize for kind, shape in specs.values())
    scratch = 4 * len(opened) * sum(prod(shape) for _, shape in specs.values()) if method == "fisher" else 0
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    with atomic_directory(out, needed_bytes=size + scratch) as folder, _bar(method, progress) as advance:
        read = [*opened, *([original] if found.uses_base and original else [])]
        for number, checkpoint in enumerate(read):
            check_finite(checkpoint)
            advance("checking", (number + 1) / len(read))
        with CheckpointWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
            if found.kind == "data":
                _merge_on_data(found, configured, resolved, opened, data or [], seed, place, folder, writer, advance)
            else:
                _merge_tensors(found, configured, resolved, opened, reference, seed, place, writer, advance)
        advance("done", 1.0)
        has_tokenizer = any(opened[0].folder.glob("tokenizer*"))
        copy_extras(opened[0] if has_tokenizer or original is None else original, folder, dtype=dtype)
    seconds = time.perf_counter() - start
    parameters = sum(prod(shape) for _, shape in specs.values())
    logger.info("%s of %d models: %d tensors in %.1f s, in %s", method, len(sources), len(specs), seconds, out)
    return MergeReport(method, Path(out), len(specs), parameters, seconds, resolved, asdict(configured), notes)


def _merge_tensors(
    method: Method,
    settings: MergeSettings,
    weights: list[float],
    sources: list[Checkpoint],
    reference: Checkpoint,
    seed: int,
    device: torch.device,
    writer: CheckpointWriter,
    advance: Any,
) -> None:
    options = {name: value for name, value in asdict(settings).items() if name != "weights"}
    done = 0
    for names, kept, tensors in _read_ahead(method, sources, reference):
        if kept:
            writer.write(names[0], tensors[0][0])
        else:
            if method.random:
                options["seed"] = _tensor_seed(seed, names[0])
            stacked = [_work(part, device, batch=method.kind == "batch") for part in tensors]
            base, parts = (stacked[0], stacked[1:]) if method.uses_base else (None, stacked)
            merged = method.function(base, parts, weights, **options)
            for name, tensor in zip(names, merged if method.kind == "batch" else [merged], strict=True):
                writer.write(name, tensor)
        done += len(names)
        advance("merging", done / len(reference.tensors))


def _read_ahead(
    method: Method, sources: list[Checkpoint], reference: Checkpoint
) -> Iterator[tuple[list[str], bool, list[list[Tensor]]]]:
    """Yields names, whether the base's tensor is kept, and the tensors of base and sources, read one group ahead."""

    def read(names: list[str], kept: bool) -> list[list[Tensor]]:
        checkpoints = [reference] if kept else [*([reference] if method.uses_base else []), *sources]
        return [[checkpoint.read(name) for name in names] for checkpoint in checkpoints]

    groups = list(_groups(method, reference))
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = [reader.submit(read, *groups[0])]
        for number, (names, kept) in enumerate(groups):
            if number + 1 < len(groups):
                waiting.append(reader.submit(read, *groups[number + 1]))
            yield names, kept, waiting.pop(0).result()


def _groups(method: Method, reference: Checkpoint) -> Iterator[tuple[list[str], bool]]:
    """The tensors that are merged together, and whether the base's are kept instead.

    Integers (counters, masks) are always kept. For a batch method a linear weight is a tensor of two dimensions or more
    inside a numbered layer; those of one layer and shape go together.
    """
    batches: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, info in reference.tensors.items():
        block = _BLOCK.search(name)
        if not info.dtype.is_floating_point or (method.kind == "batch" and (len(info.shape) < 2 or block is None)):
            yield [name], True
        elif method.kind == "batch" and block is not None:
            batches[name[: block.end()], info.shape].append(name)
        else:
            yield [name], False
    for (_, shape), names in batches.items():
        count = max(1, _BATCH_BYTES // (4 * prod(shape)))
        yield from ((names[first : first + count], False) for first in range(0, len(names), count))


def _merge_on_data(
    method: Method,
    settings: MergeSettings,
    weights: list[float],
    sources: list[Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    seed: int,
    device: torch.device,
    folder: Path,
    writer: CheckpointWriter,
    advance: Any,
) -> None:
    stored = next(info.dtype for info in sources[0].tensors.values() if info.dtype.is_floating_point)
    job = DataMerge(
        sources=sources,
        data=[list(part) for part in data],
        weights=weights,
        dtype=torch.float32 if device.type == "cpu" else stored,
        device=device,
        seed=seed,
        scratch=folder,
        write=writer.write,
        advance=lambda share: advance("running the sources", share),
    )
    method.function(job, settings)


def _check_data(method: Method, data: Sequence[Sequence[TokenSequence]] | None, sources: Sequence[Any]) -> None:
    if method.kind != "data":
        return
    if data is None or len(data) != len(sources):
        given = "none" if data is None else f"{len(data)} lists"
        raise ValueError(f"merge method {method.name} needs data, one list of sequences a source; given: {given}")
    for source, sequences in zip(sources, data, strict=True):
        used = any(len(s) > max(s.response_start, 1) for s in sequences) if method.name == "fisher" else len(sequences)
        if not used:
            what = "response tokens" if method.name == "fisher" else "tokens"
            raise ValueError(f"merge method {method.name}: the data of {source} holds no {what}")


def _work(tensors: list[Tensor], device: torch.device, *, batch: bool) -> Tensor:
    moved = [tensor.to(device, torch.float32) for tensor in tensors]
    return torch.stack(moved) if batch else moved[0]


def _tensor_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1


def _output_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


@contextmanager
def _bar(method: str, shown: bool) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(method, total=1.0)

        def advance(what: str, share: float) -> None:
            progress.update(task, description=f"{method}: {what}", completed=share)

        yield advance
