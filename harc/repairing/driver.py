"""Repairing a merged checkpoint, layer by layer: the library's face (docs/repair.md)."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harc.calibration.checks import batch_tokens, check_calibration
from harc.calibration.resume import Progress, fingerprint
from harc.calibration.text import divide
from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint, replace_tensors
from harc.memory import peak_memory_gb
from harc.models.hidden_states import HiddenStates
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.parallel import world
from harc.repairing.checks import check_models, states_budget
from harc.repairing.kept import KeptTensors
from harc.repairing.layer import LayerRepair
from harc.repairing.maps import experts_module
from harc.repairing.observed import Domain
from harc.repairing.report import LayerRecord, RepairReport
from harc.repairing.settings import RepairSettings
from harc.solver.settings import with_options
from harc.tokens import TokenSequence

__all__ = ["repair"]


def repair(
    merged: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    *,
    out: str | Path,
    settings: RepairSettings | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int | None = None,
    min_tokens: int | None = None,
    memory_budget_gb: float | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> RepairReport:
    """Fits every linear map of a merged checkpoint to what its sources compute, and writes a checkpoint to `out`.

    Norms, embeddings, head and biases stay as they are.

    Args:
        merged: the merged checkpoint (folder or hub id), whatever made it.
        sources: one source model per domain.
        data: one calibration text per domain.
        out: the new checkpoint; shards without a repaired tensor are linked, not copied.
        settings: what is repaired, and how.
        dtype: what the models compute in, by default what the merged checkpoint is stored in.
        device: where layers run and maps are solved.
        tokens_per_batch: tokens forwarded at once, padding included; by default 1024 on a CPU, 4096 elsewhere.
        min_tokens: the least number of tokens a domain must have, by default the hidden size.
        memory_budget_gb: of the host's memory (None: 80 % of what is available). What is left of it beside a layer of
            each model, a batch and a map's sums holds hidden states; the rest go to memory-mapped files.
        resume: a folder for finished layers; a repair killed and started again with the same one goes on there. It is
            removed at the end. By default a folder beside `out` that does not outlive the call.
        progress: whether to show a bar.
        options: fields of RepairSettings to set here, such as ridge="auto".

    Raises:
        ValueError, CheckpointError, NoRouterError: before any work where that is possible; nothing is left under `out`.
    """
    began = time.perf_counter()
    settings = with_options(settings or RepairSettings(), options)
    if world()[1] > 1:
        raise ValueError(f"repair runs in one process, found {world()[1]}")
    out = Path(out)
    stream = LayerStream(merged, dtype=dtype, device=device)
    if stream.checkpoint.config.get("quantization_config"):
        raise CheckpointError(f"{stream.checkpoint.source}: quantised; save it in bfloat16 before it is repaired")
    opened = [open_checkpoint(source) for source in sources]
    check_calibration(stream, opened, data, out, min_tokens, "source_inputs")
    check_models(stream, opened)
    others = [LayerStream(source, dtype=stream.dtype, device=device) for source in opened]
    tokens = [sum(len(sequence) for sequence in sequences) for sequences in data]
    batch = tokens_per_batch or batch_tokens(stream)
    store = Store(
        states_budget(stream, len(others), memory_budget_gb, sum(tokens), batch),
        _existing(out),
        pinned=stream.device.type == "cuda",
    )
    domains = [
        _domain(stream, source, sequences, settings.holds_out, batch, store)
        for source, sequences in zip(others, data, strict=True)
    ]
    with contextlib.ExitStack() as cleanup:
        folder = Path(resume) if resume else Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=_existing(out)))
        if not resume:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        key = fingerprint([stream.checkpoint, *opened], data, {**asdict(settings), "dtype": stream.dtype})
        kept = Progress(folder, key)
        records, names = _run(stream, domains, settings, kept, progress)
        replace_tensors(stream.checkpoint, out, KeptTensors(stream, kept, names))
        kept.clear()
    return RepairReport(records, tokens, time.perf_counter() - began, peak_memory_gb(), asdict(settings))


def _run(
    stream: LayerStream, domains: list[Domain], settings: RepairSettings, kept: Progress, progress: bool
) -> tuple[list[LayerRecord], dict[int, list[str]]]:
    """Repairs all layers that are not finished; records, and the published names of what changed, by layer."""
    states = [state for domain in domains for state in (domain.merged, domain.source)]
    values = [state.values for state in states]
    notes = {}
    for layer in range(stream.layers):
        if (found := kept.load(layer)) is None:
            break
        notes[layer] = found[1]
    del found
    behind = kept.load_states(values, len(notes) - 1)
    if behind < 0:
        for state in states:
            with state.stream.loaded(None):
                state.embed()
    _check_forms(stream, domains, settings)
    for layer in tqdm(range(stream.layers), desc="repair", unit="layer", disable=not progress):
        started = time.perf_counter()
        if layer <= behind:
            continue
        with contextlib.ExitStack() as loaded:
            for one in (stream, *(domain.source.stream for domain in domains)):
                loaded.enter_context(one.loaded(layer))
            if layer in notes:
                _forward(stream, layer, kept, states)
            else:
                notes[layer] = _repair_layer(stream, layer, domains, settings, kept, started)
        kept.save_states(layer, values, time.perf_counter() - started)
    records = [LayerRecord.from_dict(notes[layer]["record"]) for layer in range(stream.layers)]
    return records, {layer: note["published"] for layer, note in notes.items()}


def _repair_layer(
    stream: LayerStream, layer: int, domains: list[Domain], settings: RepairSettings, kept: Progress, started: float
) -> dict:
    work = LayerRepair(layer, domains, settings)
    work.run()
    tensors = {name: stream.model.get_parameter(name).data.cpu() for name in sorted(work.changed)}
    record = LayerRecord(layer, work.maps, work.router, time.perf_counter() - started)
    note = {"record": asdict(record), "published": list(stream.parameters.published(tensors))}
    kept.save(layer, tensors, note)
    return note


def _forward(stream: LayerStream, layer: int, kept: Progress, states: list[HiddenStates]) -> None:
    """Takes all tokens through a finished layer."""
    found = kept.load(layer)
    assert found is not None
    for name, tensor in found[0].items():
        stream.model.get_parameter(name).data.copy_(tensor)
    for state in states:
        state.forward(layer)


def _domain(
    stream: LayerStream,
    source: LayerStream,
    sequences: Sequence[TokenSequence],
    hold_out: bool,
    batch: int,
    store: Store,
) -> Domain:
    fitted, held = divide(sequences) if hold_out else (list(sequences), [])
    states = [HiddenStates(one, fitted + held, batch, store) for one in (stream, source)]
    return Domain(states[0], states[1], sum(len(sequence) for sequence in fitted))


def _check_forms(stream: LayerStream, domains: list[Domain], settings: RepairSettings) -> None:
    """Looks at each kind of layer before the first is repaired.

    Raises:
        ValueError: experts that cannot be repaired on their own.
    """
    for domain in domains:
        domain.source.stream.forms = stream.forms  # layers of one class have one form
    for layer, router in stream.routers.items():
        splits = domains[0].merged.splits(layer)
        if "experts" in settings.parts and not splits:
            raise ValueError(
                f"layer {layer} of {stream.checkpoint.source} is not h + moe(norm(h)): its experts cannot be repaired; "
                "leave `experts` out of parts"
            )
        if "experts" in settings.parts and experts_module(stream.moe(layer)) is None:
            raise ValueError(
                f"{router.moe_name} of {stream.checkpoint.source}: no experts in 3-D parameters; leave `experts` out"
            )


def _existing(out: Path) -> Path:
    """The nearest folder above the output that is there (/tmp may be memory)."""
    return next(parent for parent in out.absolute().parents if parent.is_dir())
