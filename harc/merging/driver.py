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
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from harc.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Dequantised,
    atomic_directory,
    check_finite,
    check_sources,
    copy_extras,
    dequantised,
    open_checkpoint,
)
from harc.checkpoint.write import MAX_SHARD_BYTES
from harc.merging.alignment import LayerMatch, order_experts
from harc.merging.card import write_card
from harc.merging.data_merge import DataMerge
from harc.merging.memory import check_tensors, states_budget
from harc.merging.registry import Method, find_method
from harc.merging.settings import MergeSettings
from harc.tokens import TokenSequence

logger = logging.getLogger(__name__)

How = Literal["keep", "alone", "batch", "elsewhere"]
Group = tuple[list[str], How]

_BLOCK = re.compile(r"\.\d+\.")  # a name with a number in it lies in a decoder layer
_BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}<{remaining}"
_BATCH_BYTES = 1 << 26  # of one source's float32 weights in a batch of same-shaped matrices


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    seconds: wall time; notes: differences between the sources that did not stop it; label, reference: the method's name
    in tables, and where it was published; experts: by source, in words, whether its experts are in the base's order (or
    the first source's where there is none); matches: the same by layer, see `harc.merging.alignment`.
    """

    method: str
    out: Path
    tensors: int
    parameters: int
    seconds: float
    weights: list[float]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    label: str = ""
    reference: str = ""
    experts: dict[str, str] = field(default_factory=dict)
    matches: dict[str, list[LayerMatch]] = field(default_factory=dict)


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
    published: bool = False,
    align: bool = False,
    memory_budget_gb: float | None = None,
    **settings: Any,
) -> MergeReport:
    """Merges checkpoints into a complete one, in the published layout, written atomically to `out`.

    Args:
        method: a name in `harc.merging.METHODS`.
        sources: the models to merge, local folders or hub ids.
        base: what they were fine-tuned from; None for methods that need no task vectors.
        out: a folder that is not there yet (or is empty).
        weights: one per source, for the methods that have them.
        data: one list of sequences per source, for the methods that run them (Fisher, RegMean).
        dtype: of the result; as stored in the base (or first source) when None.
        progress: whether to draw a progress bar.
        seed: for what is drawn at random; a tensor's draws depend on it and the tensor's name alone.
        device: where tensors are merged and sources run: `auto`, `cpu`, `cuda`, …
        max_shard_bytes: of a weight file of the result.
        published: settings that are not given are the paper's authors' where those are not the defaults.
        align: match the sources' experts with the base's (or the first source's) by their weights, and merge them in
            its order. Without, router rows alone are compared, and a source in another order is warned of.
        memory_budget_gb: of the host's memory (None: 80 % of what is available). A merge that needs more is refused;
            hidden states of methods that read data go to memory-mapped files beyond it.
        settings: the method's own; its file in `harc/merging/methods` declares them.

    Raises:
        ValueError: an unknown method or setting, weights or data that don't fit, too little memory.
        CheckpointError: sources that cannot be read or merged, or an `out` that is there already: before any work;
            with align, also experts that cannot be told apart.
        NoRouterError: with align, a model without routers.
    """
    start = time.perf_counter()
    found = find_method(method)
    if weights is not None:
        settings["weights"] = list(weights)
    configured = found.configure(settings, published=published)
    if not sources:
        raise ValueError("no sources to merge")
    resolved = configured.resolved_weights(len(sources))
    _check_data(found, data, sources)
    opened = [dequantised(open_checkpoint(source)) for source in sources]
    original = dequantised(open_checkpoint(base)) if base is not None else None
    if found.uses_base and original is None:
        raise ValueError(f"merge method {method} merges task vectors: it needs the base model")
    reference = original or opened[0]
    notes = check_sources(reference, opened)
    for note in notes:
        logger.warning("%s", note)
    specs = {name: (_output_dtype(info.dtype, dtype), info.shape) for name, info in reference.tensors.items()}
    size = sum(prod(shape) * kind.itemsize for kind, shape in specs.values())
    scratch = found.scratch_bytes * len(opened) * sum(prod(shape) for _, shape in specs.values())
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    states_gb = None
    if found.kind == "data":
        states_gb = states_budget(specs, len(opened), place, memory_budget_gb)
    else:
        batch = _BATCH_BYTES if found.kind == "batch" else 0
        check_tensors(specs, len(opened) + found.uses_base, batch, place, memory_budget_gb)
    with atomic_directory(out, needed_bytes=size + scratch) as folder, _bar(method, progress) as advance:
        read = [*opened, *([original] if found.uses_base and original else [])]
        for number, checkpoint in enumerate(read):
            check_finite(checkpoint)
            advance("checking", (number + 1) / len(read))
        ordered = order_experts(reference, opened, apply=align)
        parts = ordered.sources
        with CheckpointWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
            if found.kind == "data":
                _merge_on_data(
                    found, configured, resolved, parts, data or [], seed, place, states_gb, folder, writer, advance
                )
            else:
                _merge_tensors(found, configured, resolved, parts, reference, seed, place, writer, advance)
        advance("done", 1.0)
        has_tokenizer = any(opened[0].folder.glob("tokenizer*"))
        giver = opened[0] if has_tokenizer or original is None else original
        written = torch.bfloat16 if isinstance(giver, Dequantised) else None
        copy_extras(giver, folder, dtype=dtype or written)
        report = MergeReport(
            method, Path(out), len(specs), sum(prod(shape) for _, shape in specs.values()),
            time.perf_counter() - start, resolved, asdict(configured), notes,
            found.label, found.reference, ordered.words, ordered.matches,
        )  # fmt: skip
        write_card(folder, report, [str(source) for source in sources], None if base is None else str(base))
    logger.info("%s of %d models: %d tensors in %.1f s, in %s", method, len(sources), len(specs), report.seconds, out)
    return report


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
    done = 0
    for (names, how), tensors in _read_ahead(method, sources, reference):
        if how == "keep":
            writer.write(names[0], tensors[0][0])
        else:
            drawn = {"seed": _tensor_seed(seed, names[0])} if method.random else {}
            stacked = [_work(part, device, batch=how == "batch") for part in tensors]
            base, parts = (stacked[0], stacked[1:]) if method.uses_base else (None, stacked)
            function = method.elsewhere if how == "elsewhere" and method.elsewhere else method.function
            merged = function(base, parts, weights, settings, **drawn)
            for name, tensor in zip(names, merged if how == "batch" else [merged], strict=True):
                writer.write(name, tensor)
        done += len(names)
        advance("merging", done / len(reference.tensors))


def _read_ahead(
    method: Method, sources: list[Checkpoint], reference: Checkpoint
) -> Iterator[tuple[Group, list[list[Tensor]]]]:
    """Yields each group and the tensors of base and sources, read one group ahead."""

    def read(names: list[str], how: How) -> list[list[Tensor]]:
        checkpoints = [reference] if how == "keep" else [*([reference] if method.uses_base else []), *sources]
        return [[checkpoint.read(name) for name in names] for checkpoint in checkpoints]

    groups = list(_groups(method, reference))
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = [reader.submit(read, *groups[0])]
        for number, group in enumerate(groups):
            if number + 1 < len(groups):
                waiting.append(reader.submit(read, *groups[number + 1]))
            yield group, waiting.pop(0).result()


def _groups(method: Method, reference: Checkpoint) -> Iterator[Group]:
    """The tensors that are merged together, and how.

    Integers (counters, masks) are always kept. For a batch method a linear weight is a tensor of two dimensions or more
    inside a numbered layer; those of one layer and shape go together.
    """
    rest: How = "elsewhere" if method.elsewhere else "keep"
    batches: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, info in reference.tensors.items():
        block = _BLOCK.search(name)
        if not info.dtype.is_floating_point:
            yield [name], "keep"
        elif method.kind != "batch":
            yield [name], "alone"
        elif block is None or len(info.shape) < 2:
            yield [name], rest
        else:
            batches[name[: block.end()], info.shape].append(name)
    for (_, shape), names in batches.items():
        count = max(1, _BATCH_BYTES // (4 * prod(shape)))
        yield from ((names[first : first + count], "batch") for first in range(0, len(names), count))


def _merge_on_data(
    method: Method,
    settings: MergeSettings,
    weights: list[float],
    sources: list[Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    seed: int,
    device: torch.device,
    states_gb: float | None,
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
        states_gb=states_gb,
    )
    method.function(job, settings)


def _check_data(method: Method, data: Sequence[Sequence[TokenSequence]] | None, sources: Sequence[Any]) -> None:
    if method.kind != "data":
        return
    if data is None or len(data) != len(sources):
        given = "none" if data is None else f"{len(data)} lists"
        raise ValueError(f"merge method {method.name} needs data, one list of sequences per source; given: {given}")
    for source, sequences in zip(sources, data, strict=True):
        answers = method.reads == "response tokens"
        if not any(len(s) > (max(s.response_start, 1) if answers else 0) for s in sequences):
            raise ValueError(f"merge method {method.name}: the data of {source} holds no {method.reads}")


def _work(tensors: list[Tensor], device: torch.device, *, batch: bool) -> Tensor:
    moved = [tensor.to(device, torch.float32) for tensor in tensors]
    return torch.stack(moved) if batch else moved[0]


def _tensor_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1


def _output_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


@contextmanager
def _bar(method: str, shown: bool) -> Iterator[Any]:
    with tqdm(total=1.0, desc=method, disable=not shown, bar_format=_BAR) as bar:

        def advance(what: str, share: float) -> None:
            bar.set_description(f"{method}: {what}", refresh=False)
            bar.update(share - bar.n)

        yield advance
