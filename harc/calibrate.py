"""Calibrating the routers of a merged checkpoint, layer by layer (METHOD section 5).

For each layer: its router's inputs on every domain's tokens, from the merged model with the routers below already
calibrated; the sources' routing on those inputs; the solve; and on with the new router, rounded to the dtype it is
written in. Only router weights change. Memory: one layer's weights, and two (tokens × hidden) tensors a domain.
"""

import logging
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from harc.calibration_checks import batch_tokens, check_calibration, choose_layers, states_budget
from harc.calibration_report import CalibrationReport, LayerCalibration, peak_memory_gb, record_layer
from harc.checkpoint import Checkpoint, open_checkpoint, replace_tensors
from harc.fit import Objective, check_fit, fit_router
from harc.hidden_states import HiddenStates
from harc.operator import Hessian
from harc.parallel import barrier, reduce_sum, share, world
from harc.preconditioner import PreconditionerName
from harc.resume import Progress, fingerprint
from harc.solver import RouterSolution
from harc.store import Store
from harc.streaming import LayerStream
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)

__all__ = ["CalibrationReport", "LayerCalibration", "calibrate", "divide"]


def calibrate(
    merged: str | Path | Checkpoint,
    sources: Sequence[str | Path | Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    *,
    out: str | Path,
    alpha: float | Literal["auto"] = 0.9,
    beta: float | None = None,
    hessian: Hessian = "full",
    objective: Objective = "quadratic",
    layers: int | str = "all",
    tol: float = 1e-6,
    max_iter: int = 1000,
    preconditioner: PreconditionerName = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int | None = None,
    min_tokens: int | None = None,
    memory_budget_gb: float | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> CalibrationReport:
    """Calibrates a merged checkpoint's routers to its sources' distributions and writes a complete checkpoint to `out`.

    Under an initialised torch.distributed process group, each process takes a share of the sequences (harc.parallel).

    Args:
        merged: the merged checkpoint (folder or hub id), whatever made it.
        sources: a domain's source model each; only their routers are read.
        data: a domain's calibration text each.
        out: the new checkpoint; shards without a router are linked, not copied.
        alpha: damping of the precision matrix's off-diagonals, α Λ + (1 − α) diag Λ; "auto" chooses by held-out text.
        beta: if given, Λ + β diag Λ instead.
        hessian: curvature of the routing distribution: full, diagonal or identity.
        objective: "quadratic", or "kl" for Newton steps on the exact routing KL.
        layers: "all", how many of the last MoE layers, or a share of them such as "25%", rounded up. The layers before
            are forwarded, not solved.
        tol: of the solve, on ‖residual‖ / ‖right-hand side‖.
        max_iter: iterations a layer at most.
        preconditioner: see harc.preconditioner.
        dtype: what the model computes in, by default what the checkpoint is stored in.
        device: where layers run and routers are solved.
        tokens_per_batch: tokens forwarded at once, padding included; by default 1024 on a CPU, 4096 elsewhere.
        min_tokens: the least number of tokens a domain must have, by default the hidden size.
        memory_budget_gb: of the host's memory. What is left of it beside a layer's weights and a batch holds hidden
            states and router inputs; those that find no room are kept in memory-mapped files.
        resume: a folder for finished layers; a calibration killed and started again with the same one goes on there
            (see harc.resume). It is removed at the end. With several processes nothing is kept.
        progress: whether to show a bar.

    Raises:
        ValueError, CheckpointError, NoRouterError: before any work where that is possible; nothing is left under `out`.
    """
    began = time.perf_counter()
    out = Path(out)
    stream = LayerStream(merged, dtype=dtype, device=device)
    opened = [open_checkpoint(source) for source in sources]
    chosen = choose_layers(stream, layers)
    check_fit(alpha, beta, hessian, objective, preconditioner)
    check_calibration(stream, opened, data, out, min_tokens)
    batch = tokens_per_batch or batch_tokens(stream)
    tokens = [sum(len(sequence) for sequence in sequences) for sequences in data]
    budget = states_budget(stream, memory_budget_gb, sum(tokens), batch)
    settings = {
        "alpha": alpha,
        "beta": beta,
        "hessian": hessian,
        "objective": objective,
        "layers": layers,
        "tol": tol,
        "max_iter": max_iter,
    }
    rank, processes = world()
    key = fingerprint([stream.checkpoint, *opened], data, {**settings, "dtype": stream.dtype, "processes": processes})
    kept = Progress(None if resume is None or processes > 1 else Path(resume), key)
    finished = kept.finished(chosen)
    scratch = next(parent for parent in out.absolute().parents if parent.is_dir())  # /tmp may be memory
    store = Store(budget, scratch, pinned=stream.device.type == "cuda")
    texts = [_Text(stream, sequences, alpha == "auto", batch, store) for sequences in data]
    states = [text.state.values for text in texts]
    behind = kept.load_states(states, next((layer - 1 for layer in chosen if layer not in finished), stream.layers))
    if behind < 0:
        with stream.loaded(None):
            for text in texts:
                text.state.embed()
    fit = partial(
        fit_router,
        alpha=alpha,
        beta=beta,
        hessian=hessian,
        objective=objective,
        tol=tol,
        max_iter=max_iter,
        preconditioner=preconditioner,
        reduce=reduce_sum if processes > 1 else None,
    )
    records: list[LayerCalibration] = []
    weights: dict[str, Tensor] = {}
    with tqdm(total=len(chosen), desc="calibrate", unit="layer", disable=not progress or rank > 0) as bar:
        for layer in range(max(chosen, default=-1) + 1):
            router, note = finished.get(layer, (None, None))
            record = None if note is None else LayerCalibration(**note)
            if layer in chosen and record is None:
                router, record = _calibrate_layer(stream, layer, texts, opened, fit, kept)
                kept.save_states(layer, states, record.forward_seconds)
            elif layer > behind:
                started = time.perf_counter()
                with stream.loaded(layer):
                    if router is not None:
                        stream.set_router(layer, router)
                    for text in texts:
                        text.state.forward(layer)
                kept.save_states(layer, states, time.perf_counter() - started)
            if record is None or router is None:
                continue
            weights[stream.routers[layer].checkpoint_key] = router
            records.append(record)
            bar.update()
            bar.set_postfix(layer=layer, kl=f"{record.kl_before:.4f}→{record.kl_after:.4f}")
    if rank == 0:
        replace_tensors(stream.checkpoint, out, weights)
    barrier()
    kept.clear()
    return CalibrationReport(records, tokens, time.perf_counter() - began, peak_memory_gb(), settings)


def _calibrate_layer(
    stream: LayerStream,
    layer: int,
    texts: Sequence["_Text"],
    sources: Sequence[Checkpoint],
    fit: Callable[..., RouterSolution],
    kept: Progress,
) -> tuple[Tensor, LayerCalibration]:
    """Takes all texts through a layer and fits its router between its halves; the router as stored, and its record."""
    started = time.perf_counter()
    split = all([text.state.splits(layer) for text in texts if text.state.tokens])
    with stream.loaded(layer, "attention" if split else "layer"):
        inputs = [text.state.router_inputs(layer, split) for text in texts]
    forward = time.perf_counter() - started
    features = _for_solving(inputs, stream.device)
    fitted, held = zip(*(text.split(x) for text, x in zip(texts, features, strict=True)), strict=True)
    place = features[0].device
    targets = [stream.router_weight(layer, source).to(place) for source in sources]
    merged = stream.router_weight(layer).to(place)
    held_out = list(held) if any(len(x) for x in held) else None
    activation = stream.routers[layer].activation
    solution = fit(list(fitted), targets, init=merged, held_out=held_out, activation=activation)
    router, record = record_layer(stream, layer, solution, fitted, targets, forward)
    del features, fitted, held
    kept.save(layer, router, asdict(record))
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


class _Text:
    """One domain's sequences in this process, those held out (one in five, by their content) last."""

    def __init__(
        self,
        stream: LayerStream,
        sequences: Sequence[TokenSequence],
        hold_out: bool,
        tokens_per_batch: int,
        store: Store,
    ) -> None:
        fitted, held = divide(sequences) if hold_out else (list(sequences), [])
        fitted, held = share(fitted), share(held)
        self._fitted = sum(len(sequence) for sequence in fitted)
        self.state = HiddenStates(stream, fitted + held, tokens_per_batch, store)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Router inputs to fit to, and those held out."""
        return x[: self._fitted], x[self._fitted :]


def divide(sequences: Sequence[TokenSequence]) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """Divides sequences into those to fit to and those held out, about one in five, whatever their order.

    Raises:
        ValueError: fewer than two different sequences.
    """
    ranked = sorted(sequences, key=lambda sequence: (zlib.crc32(sequence.ids.numpy().tobytes()), sequence.ids.tolist()))
    count = max(1, len(ranked) // 5)
    if len(ranked) < 2:
        raise ValueError("alpha='auto' holds sequences out to choose by: at least two a domain are needed")
    return ranked[count:], ranked[:count]
