"""`check`: proof that everything of a merged checkpoint arrived, whatever tool made it (docs/check.md)."""

import contextlib
import logging
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from harc.checking.findings import CheckReport, Finding
from harc.checking.judge import judge
from harc.checking.layout import check_layout, published_shapes
from harc.checking.loading import check_loading
from harc.checking.movement import Look, look
from harc.checking.pieces import Pieces, pieces_of
from harc.checking.sides import check_sides
from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from harc.models.empty import empty_model, stored_dtype
from harc.models.routers import NoRouterError, find_routers

log = logging.getLogger(__name__)

ENGINES = ("transformers", "vllm")


def check(
    model: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint] = (),
    base: str | Path | Checkpoint | None = None,
    *,
    engines: Sequence[str] = ENGINES,
    progress: bool = True,
) -> CheckReport:
    """Looks at every tensor of a merged checkpoint, one at a time, and holds it against its sources' and the base's.

    Without a base, movements are seen from the sources' mean, and what was left at the base cannot be told. Without
    sources, what was copied from one of them cannot.

    Args:
        model: the checkpoint to check, a folder or hub id.
        sources: the models that it was merged from.
        base: what they were fine-tuned from.
        engines: what shall load it, of transformers and vllm; those that are not installed, or that there is no memory
            for, are left out, and the report says so.
        progress: whether to show a bar.

    Raises:
        CheckpointError: sources or a base that cannot be read, or of another architecture than one another.
        ValueError: an engine that there is not.
    """
    began = time.perf_counter()
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise ValueError(f"engine {unknown[0]!r}: expected some of {', '.join(ENGINES)}")
    others = [open_checkpoint(source) for source in sources]
    original = None if base is None else open_checkpoint(base)
    references = [*others, *([original] if original else [])]
    _check_family(references)
    try:
        checkpoint = open_checkpoint(model)
    except CheckpointError as error:
        return _unreadable(str(model), references, sources, base, str(error), began)
    checked, left_out = ["layout", "files"], _not_told(others, original)
    empty, findings = _model_of(checkpoint, references)
    if empty is not None:
        findings += check_layout(checkpoint, published_shapes(empty, references), references)
    findings += check_sides(checkpoint, others or references)
    looks: list[Look] = []
    if empty is not None:
        looks = _looks(checkpoint, others, original, empty, progress)
        findings += judge(looks, [Path(one.source).name for one in others], _routers(empty))
        checked += ["values", *(["movement"] if references else [])]
    loading, given, without = check_loading(checkpoint, engines)
    checked += [f"loading in {engine}" for engine in given]
    return CheckReport(
        checkpoint.source,
        [one.source for one in others],
        None if original is None else original.source,
        sorted(findings + loading, key=lambda finding: finding.severity != "problem"),
        [one.movement for one in looks if one.movement is not None],
        len(checkpoint.tensors),
        sum(prod(info.shape) for info in checkpoint.tensors.values()),
        checked,
        left_out + without,
        given,
        time.perf_counter() - began,
    )


def _looks(
    model: Checkpoint, sources: Sequence[Checkpoint], base: Checkpoint | None, empty: PreTrainedModel, progress: bool
) -> list[Look]:
    own = Pieces(model, empty)
    others = [Pieces(source, empty) for source in sources]
    original = None if base is None else Pieces(base, empty)
    readers = [one.reader for one in (own, *others, *([original] if original else []))]
    pieces = pieces_of(empty, readers)
    seen = [
        look(piece, own, others, original)
        for piece in tqdm(pieces, desc="check", unit="piece", disable=not progress, leave=False)
    ]
    return [one for one in seen if one is not None]


def _routers(model: PreTrainedModel) -> set[str]:
    with contextlib.suppress(NoRouterError):
        return {
            name for router in find_routers(model).values() for name in (router.weight_name, router.bias_name) if name
        }
    return set()


def _model_of(checkpoint: Checkpoint, references: Sequence[Checkpoint]) -> tuple[PreTrainedModel | None, list[Finding]]:
    """The architecture that the checkpoint is read as: its own, or its sources' where its config.json makes none."""
    findings: list[Finding] = []
    for one in (checkpoint, *references):
        try:
            return empty_model(one, _dtype(one)), findings
        except CheckpointError as error:
            if one is checkpoint:
                findings.append(Finding("problem", "files", str(error)))
    return None, findings


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    try:
        return stored_dtype(checkpoint)
    except StopIteration:
        return torch.float32


def _check_family(references: Sequence[Checkpoint]) -> None:
    """Sources and base must be of one architecture, or nothing follows from a comparison.

    Raises:
        CheckpointError: another model type.
    """
    for one in references:
        first = references[0].config.get("model_type")
        if one.config.get("model_type") != first:
            raise CheckpointError(
                f"{one.folder / 'config.json'}: model_type is {one.config.get('model_type')!r}, {first!r} in "
                f"{references[0].source}; sources and base must be of one architecture"
            )


def _not_told(sources: Sequence[Checkpoint], base: Checkpoint | None) -> list[str]:
    said = []
    if base is None:
        said.append("what was left at the base: no base was given")
    if not sources:
        said.append("what the sources changed, and their tokenizer: no sources were given")
    return said


def _unreadable(
    model: str,
    references: Sequence[Checkpoint],
    sources: Sequence[str | Path | Checkpoint],
    base: str | Path | Checkpoint | None,
    error: str,
    began: float,
) -> CheckReport:
    """The report of a checkpoint that cannot be opened at all; that a name leads nowhere is the caller's mistake.

    Raises:
        CheckpointError: no such folder or hub id.
    """
    if not Path(model).expanduser().is_dir():
        raise CheckpointError(error)
    names = [one.source for one in references[: len(sources)]]
    last = references[-1].source if base is not None else None
    finding = Finding("problem", "layout", error)
    left_out = ["values, movement, loading: the checkpoint cannot be opened"]
    seconds = time.perf_counter() - began
    return CheckReport(model, names, last, [finding], [], 0, 0, ["layout"], left_out, {}, seconds)
