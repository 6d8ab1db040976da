"""Calibrating the routers of a merged checkpoint, layer by layer (METHOD section 5).

For each layer: its router's inputs on every domain's tokens, from the merged model with the routers below already
calibrated; the sources' routing on those inputs; the solve; and on with the new router, rounded to the dtype it is
written in. Only router weights change. Memory: one layer's weights, and two (tokens × hidden) tensors a domain.
"""

import logging
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from harc.calibration_checks import check_calibration
from harc.checkpoint import Checkpoint, open_checkpoint, replace_tensors
from harc.fit import Objective, check_fit, fit_router
from harc.measures import kl_on_features
from harc.operator import Hessian
from harc.parallel import barrier, reduce_sum, share, world
from harc.preconditioner import PreconditionerName
from harc.resume import Progress, fingerprint
from harc.solver import RouterSolution
from harc.streaming import HiddenStates, LayerStream, Store
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerCalibration:
    """One layer's record.

    iterations, residual, converged, residuals, reason, preconditioner, alpha, kept, held_out_kl, kl_steps: see
    RouterSolution; seconds: wall time of the fit; kl_before, kl_after: routing KL (nats) on the tokens fitted to, mean
    over domains, with the merged and the calibrated router; kl_before_domains, kl_after_domains: of each domain.
    """

    layer: int
    iterations: int
    residual: float
    converged: bool
    residuals: list[float]
    reason: str
    preconditioner: str
    seconds: float
    kl_before: float
    kl_after: float
    kl_before_domains: list[float]
    kl_after_domains: list[float]
    alpha: float | None = None
    kept: bool = False
    held_out_kl: dict[str, float] = field(default_factory=dict)
    kl_steps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did. tokens: of each domain; seconds: in all; peak_memory_gb: of the process, resident."""

    layers: list[LayerCalibration]
    tokens: list[int]
    seconds: float
    peak_memory_gb: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def converged(self) -> bool:
        """Whether every layer's solve reached its tolerance."""
        return all(layer.converged for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-able values."""
        return asdict(self)


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
    layers: Literal["all"] | int = "all",
    tol: float = 1e-6,
    max_iter: int = 1000,
    preconditioner: PreconditionerName = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int = 4096,
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
        layers: "all", or how many of the last MoE layers.
        tol: of the solve, on ‖residual‖ / ‖right-hand side‖.
        max_iter: iterations a layer at most.
        preconditioner: see harc.preconditioner.
        dtype: what the model computes in, by default what the checkpoint is stored in.
        device: where layers run and routers are solved.
        tokens_per_batch: tokens forwarded at once, padding included.
        min_tokens: the least number of tokens a domain must have, by default the hidden size.
        memory_budget_gb: beyond this, hidden states and router inputs are kept in memory-mapped files.
        resume: a folder for finished layers; a calibration killed and started again with the same one goes on there. It
            is removed at the end.
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
    finished = Progress(None if resume is None or processes > 1 else Path(resume), key)
    texts = [_Text(stream, sequences, alpha == "auto", tokens_per_batch, Store(memory_budget_gb)) for sequences in data]
    with stream.loaded(None):
        for text in texts:
            text.state.embed()
    records: list[LayerCalibration] = []
    weights: dict[str, Tensor] = {}
    with tqdm(total=len(chosen), desc="calibrate", unit="layer", disable=not progress or rank > 0) as bar:
        for layer in range(max(chosen, default=-1) + 1):
            with stream.loaded(layer):
                done = finished.load(layer) if layer in chosen else None
                if layer not in chosen or done is not None:
                    if done is not None:
                        stream.set_router(layer, done[0])
                    for text in texts:
                        text.state.forward(layer)
                if layer not in chosen:
                    continue
                if done is None:
                    inputs = [text.state.router_inputs(layer) for text in texts]
                    parts = [text.split(x.to(device)) for text, (x, _) in zip(texts, inputs, strict=True)]
                    targets = [stream.router_weight(layer, source).to(device) for source in opened]
                    solution = fit_router(
                        [part[0] for part in parts],
                        targets,
                        init=stream.router_weight(layer).to(device),
                        held_out=[part[1] for part in parts] if alpha == "auto" else None,
                        alpha=alpha,
                        beta=beta,
                        hessian=hessian,
                        objective=objective,
                        activation=stream.routers[layer].activation,
                        tol=tol,
                        max_iter=max_iter,
                        preconditioner=preconditioner,
                        reduce=reduce_sum if processes > 1 else None,
                    )
                    weight, record = _record(stream, layer, solution, [part[0] for part in parts], targets)
                    finished.save(layer, weight, asdict(record))
                    stream.set_router(layer, weight)
                    for text, (x, split) in zip(texts, inputs, strict=True):
                        text.state.complete(layer, x, split)
                else:
                    weight, record = done[0], LayerCalibration(**done[1])
            weights[stream.routers[layer].checkpoint_key] = weight
            records.append(record)
            bar.update()
            bar.set_postfix(layer=layer, kl=f"{record.kl_before:.4f}→{record.kl_after:.4f}")
    if rank == 0:
        replace_tensors(stream.checkpoint, out, weights)
    barrier()
    finished.clear()
    tokens = [sum(len(sequence) for sequence in sequences) for sequences in data]
    return CalibrationReport(records, tokens, time.perf_counter() - began, peak_memory_gb(), settings)


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


def choose_layers(stream: LayerStream, layers: Literal["all"] | int) -> list[int]:
    """The layers to calibrate: all with a router, or the last n of them.

    Raises:
        ValueError: more layers than there are, or a negative number.
    """
    available = list(stream.routers)
    if layers == "all":
        return available
    if not isinstance(layers, int) or not 0 <= layers <= len(available):
        raise ValueError(f"layers is {layers!r}: expected 'all' or a number from 0 to {len(available)}")
    return available[len(available) - layers :]


def peak_memory_gb() -> float:
    """The most memory this process has held, resident, in GB."""
    info = psutil.Process().memory_info()
    try:
        import resource

        return max(info.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9
    except ImportError:  # not a POSIX system
        return getattr(info, "peak_wset", info.rss) / 1e9


def _record(
    stream: LayerStream,
    layer: int,
    solution: RouterSolution,
    features: Sequence[Float[Tensor, "tokens hidden"]],
    targets: Sequence[Float[Tensor, "experts hidden"]],
) -> tuple[Float[Tensor, "experts hidden"], LayerCalibration]:
    """The weight as it will be stored, and the layer's record."""
    before = stream.router_weight(layer)
    weight = solution.weight.to("cpu", before.dtype)
    if not torch.isfinite(weight).all():
        raise ValueError(f"layer {layer}: the solved router has values that {before.dtype} cannot hold")
    if not solution.converged:
        log.warning("layer %d: %s at residual %.2e", layer, solution.reason, solution.residual)
    activation, reduce = stream.routers[layer].activation, reduce_sum
    pairs = list(zip(features, targets, strict=True))
    kl_before = [kl_on_features(x, target, before, activation, reduce) for x, target in pairs]
    kl_after = [kl_on_features(x, target, weight, activation, reduce) for x, target in pairs]
    return weight, LayerCalibration(
        layer=layer,
        iterations=solution.iterations,
        residual=solution.residual,
        converged=solution.converged,
        residuals=solution.residuals,
        reason=solution.reason,
        preconditioner=solution.preconditioner,
        seconds=solution.seconds,
        kl_before=sum(kl_before) / len(kl_before),
        kl_after=sum(kl_after) / len(kl_after),
        kl_before_domains=kl_before,
        kl_after_domains=kl_after,
        alpha=solution.alpha,
        kept=solution.kept,
        held_out_kl=solution.held_out_kl,
        kl_steps=solution.kl_steps,
    )
