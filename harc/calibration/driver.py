"""Calibrating the routers of a merged checkpoint, layer by layer (METHOD section 5).

For each layer: its router's inputs on every domain's tokens, from the merged model with the routers below already
calibrated; the sources' routing on those inputs; the solve; and on with the new router, rounded to the dtype it is
written in. Only router weights change. Memory: one layer's weights, and two (tokens × hidden) tensors a domain.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harc.calibration.checks import batch_tokens, check_calibration, states_budget
from harc.calibration.control import random_change, swapped
from harc.calibration.report import CalibrationReport, LayerCalibration, record_layer
from harc.calibration.resume import Progress, fingerprint
from harc.calibration.settings import CalibrationSettings, choose_layers
from harc.calibration.text import DomainText
from harc.checkpoint import Checkpoint, open_checkpoint, replace_tensors
from harc.memory import peak_memory_gb
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.parallel import barrier, reduce_sum, world
from harc.solver.fit import fit_router
from harc.solver.settings import with_options
from harc.solver.solution import RouterSolution
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)


def calibrate(
    merged: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    *,
    out: str | Path,
    settings: CalibrationSettings | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int | None = None,
    min_tokens: int | None = None,
    memory_budget_gb: float | None = None,
    resume: str | Path | None = None,
    rounded: bool = True,
    progress: bool = True,
    **options: Any,
) -> CalibrationReport:
    """Calibrates a merged checkpoint's routers to its sources' distributions and writes a complete checkpoint to `out`.

    Under an initialised torch.distributed process group, each process takes a share of the sequences (harc.parallel).

    Args:
        merged: the merged checkpoint (folder or hub id), whatever made it.
        sources: one source model per domain; only their routers are read.
        data: the calibration text of each domain, in the order of `sources`.
        out: the new checkpoint; shards without a router are linked, not copied.
        settings: how to calibrate, by default the paper's settings.
        dtype: what the model computes in, by default what the checkpoint is stored in.
        device: where layers run and routers are solved.
        tokens_per_batch: tokens forwarded at once, padding included; by default 1024 on a CPU, 4096 elsewhere.
        min_tokens: the least number of tokens a domain must have, by default the hidden size.
        memory_budget_gb: of the host's memory (None: 80 % of what is available). What is left of it beside a layer's
            weights and a batch holds hidden states and router inputs; the rest go to memory-mapped files.
        resume: a folder for finished layers; a calibration killed and started again with the same one goes on there
            (see harc.calibration.resume). It is removed at the end. With several processes nothing is kept.
        rounded: whether the next layer is computed with a router as it is written, as in the finished checkpoint, or as
            it is solved, rounded to `dtype` alone (the authors' way, with dtype float32).
        progress: whether to show a bar.
        options: fields of CalibrationSettings to set here, such as alpha="auto".

    Raises:
        ValueError, CheckpointError, NoRouterError: before any work where that is possible; nothing is left under `out`.
    """
    began = time.perf_counter()
    settings = with_options(settings or CalibrationSettings(), options)
    out = Path(out)
    stream = LayerStream(merged, dtype=dtype, device=device)
    opened = [open_checkpoint(source) for source in sources]
    if settings.control == "swapped":
        opened = swapped(opened)
    chosen = choose_layers(list(stream.routers), settings.layers)
    check_calibration(stream, opened, data, out, min_tokens, settings.target)
    batch = tokens_per_batch or batch_tokens(stream)
    tokens = [sum(len(sequence) for sequence in sequences) for sequences in data]
    budget = states_budget(stream, memory_budget_gb, sum(tokens), batch)
    rank, processes = world()
    key = fingerprint(
        [stream.checkpoint, *opened],
        data,
        {**asdict(settings), "dtype": stream.dtype, "rounded": rounded, "processes": processes},
    )
    kept = Progress(None if resume is None or processes > 1 else Path(resume), key)
    finished = kept.finished(chosen)
    scratch = next(parent for parent in out.absolute().parents if parent.is_dir())  # /tmp may be memory
    store = Store(budget, scratch, pinned=stream.device.type == "cuda")
    beside = opened if settings.target == "source_inputs" else [None] * len(opened)
    texts = [
        DomainText(stream, source, sequences, settings.holds_out, batch, store)
        for source, sequences in zip(beside, data, strict=True)
    ]
    states = [values for text in texts for values in text.values]
    behind = kept.load_states(states, next((layer - 1 for layer in chosen if layer not in finished), stream.layers))
    if behind < 0:
        with stream.loaded(None):
            for text in texts:
                text.state.embed()
        for text in texts:
            if text.source:
                text.source.embed()
    fit = partial(fit_router, settings=settings, reduce=reduce_sum if processes > 1 else None)
    records: list[LayerCalibration] = []
    weights: dict[str, Tensor] = {}
    with tqdm(total=len(chosen), desc="calibrate", unit="layer", disable=not progress or rank > 0) as bar:
        for layer in range(max(chosen, default=-1) + 1):
            router, note = finished.get(layer, (None, None))
            record = None if note is None else LayerCalibration(**note)
            if layer in chosen and record is None:
                router, record = _calibrate_layer(stream, layer, texts, opened, fit, settings, kept, rounded)
                kept.save_states(layer, states, record.forward_seconds)
            elif layer > behind:
                started = time.perf_counter()
                with stream.loaded(layer):
                    if router is not None:
                        stream.set_router(layer, router)
                    for text in texts:
                        text.state.forward(layer)
                for text in texts:
                    if text.source:
                        text.source.forward(layer)
                kept.save_states(layer, states, time.perf_counter() - started)
            if record is None or router is None:
                continue
            written = random_change(stream.router_weight(layer), router) if settings.control == "random" else router
            weights |= stream.router_tensors(layer, written)
            records.append(record)
            bar.update()
            bar.set_postfix(layer=layer, kl=f"{record.kl_before:.4f}→{record.kl_after:.4f}")
    if rank == 0:
        replace_tensors(stream.checkpoint, out, weights)
    barrier()
    kept.clear()
    return CalibrationReport(records, tokens, time.perf_counter() - began, peak_memory_gb(), asdict(settings))


def _calibrate_layer(
    stream: LayerStream,
    layer: int,
    texts: Sequence[DomainText],
    sources: Sequence[Checkpoint],
    fit: Callable[..., RouterSolution],
    settings: CalibrationSettings,
    kept: Progress,
    rounded: bool,
) -> tuple[Tensor, LayerCalibration]:
    """Takes all texts through a layer and fits its router between its halves; the router and its record."""
    started = time.perf_counter()
    asked = [text.source.router_logits(layer) for text in texts if text.source]
    split = all([text.state.splits(layer) for text in texts if text.state.tokens])
    with stream.loaded(layer, "attention" if split else "layer"):
        inputs = [text.state.router_inputs(layer, split) for text in texts]
    forward = time.perf_counter() - started
    features = [stream.router_features(layer, x) for x in _for_solving(inputs, stream.device)]
    place = features[0].device
    fitted, held = zip(*(text.split(x) for text, x in zip(texts, features, strict=True)), strict=True)
    targets = held_targets = None
    if asked:
        parts = (text.split(z.to(place)) for text, z in zip(texts, asked, strict=True))
        targets, held_targets = (list(part) for part in zip(*parts, strict=True))
    routers = [stream.router_weight(layer, source).to(place) for source in sources]
    solution = fit(
        fitted,
        routers,
        targets,
        init=stream.router_weight(layer).to(place),
        held_out=held if settings.holds_out else None,
        held_out_targets=held_targets,
        activation=stream.routers[layer].activation,
        fixed=1 if settings.bias == "keep" and stream.routers[layer].bias_key else 0,
    )
    router, record = record_layer(stream, layer, solution, fitted, routers, targets, forward, rounded)
    del features, fitted, held, asked, targets, held_targets
    kept.save(layer, {"router": router}, asdict(record))
    started = time.perf_counter()
    with stream.loaded(layer, "moe" if split else "layer"):
        stream.set_router(layer, router)
        for text, x in zip(texts, inputs, strict=True):
            text.state.complete(layer, x, split)
    return router, replace(record, forward_seconds=forward + time.perf_counter() - started)


def _for_solving(inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Router inputs where they are solved on: on the device, or on the host if the device has no room for them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        needed = sum(x.numel() * x.element_size() for x in inputs)
        if 1.5 * needed > free:
            log.warning(
                "%.1f GB of router inputs, %.1f GB free on %s: solving on the CPU", needed / 1e9, free / 1e9, device
            )
            return list(inputs)
    return [x.to(device) for x in inputs]
