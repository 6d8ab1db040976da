"""Calibrating the routers of a merged checkpoint, layer by layer (METHOD section 5).

For each layer: its router's inputs on every domain's tokens, from the merged model with the routers below already
calibrated; the sources' routing on those inputs; the solve; and on with the new router, rounded to the dtype it is
written in. Only router weights change. Memory: one layer's weights, and two (tokens × hidden) tensors a domain.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from harc.checkpoint import Checkpoint, CheckpointError, open_checkpoint, replace_tensors
from harc.measures import kl_on_features
from harc.operator import Hessian
from harc.preconditioner import PreconditionerName
from harc.solver import RouterSolution, check_options, solve_router
from harc.streaming import HiddenStates, LayerStream, Store
from harc.tokens import TokenSequence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerCalibration:
    """One layer's record.

    iterations, residual, converged, residuals, reason, preconditioner: the solve's (see RouterSolution); seconds: the
    solve's wall time; kl_before, kl_after: routing KL (nats) on the calibration tokens, mean over domains, with the
    merged and the calibrated router; kl_before_domains, kl_after_domains: of each domain.
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
    alpha: float = 0.9,
    beta: float | None = None,
    hessian: Hessian = "full",
    layers: Literal["all"] | int = "all",
    tol: float = 1e-6,
    max_iter: int = 1000,
    preconditioner: PreconditionerName = "auto",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tokens_per_batch: int = 4096,
    min_tokens: int | None = None,
    memory_budget_gb: float | None = None,
    progress: bool = True,
) -> CalibrationReport:
    """Calibrates a merged checkpoint's routers to its sources' distributions and writes a complete checkpoint to `out`.

    Args:
        merged: the merged checkpoint (folder or hub id), whatever made it.
        sources: a domain's source model each; only their routers are read.
        data: a domain's calibration text each.
        out: the new checkpoint; shards without a router are linked, not copied.
        alpha: damping of the precision matrix's off-diagonals, α Λ + (1 − α) diag Λ.
        beta: if given, Λ + β diag Λ instead.
        hessian: curvature of the routing distribution: full, diagonal or identity.
        layers: "all", or how many of the last MoE layers.
        tol: of the solve, on ‖residual‖ / ‖right-hand side‖.
        max_iter: iterations a layer at most.
        preconditioner: see harc.preconditioner.
        dtype: what the model computes in, by default what the checkpoint is stored in.
        device: where layers run and routers are solved.
        tokens_per_batch: tokens forwarded at once, padding included.
        min_tokens: the least number of tokens a domain must have, by default the hidden size.
        memory_budget_gb: beyond this, hidden states and router inputs are kept in memory-mapped files.
        progress: whether to show a bar.

    Raises:
        ValueError, CheckpointError, NoRouterError: before any work where that is possible; nothing is left under `out`.
    """
    began = time.perf_counter()
    out = Path(out)
    stream = LayerStream(merged, dtype=dtype, device=device)
    opened = [open_checkpoint(source) for source in sources]
    chosen = choose_layers(stream, layers)
    check_options(alpha, beta, hessian, preconditioner)
    _check(stream, opened, data, out, min_tokens)
    store = Store(memory_budget_gb)
    states = [HiddenStates(stream, sequences, tokens_per_batch, store) for sequences in data]
    with stream.loaded(None):
        for state in states:
            state.embed()
    records: list[LayerCalibration] = []
    weights: dict[str, Tensor] = {}
    with tqdm(total=len(chosen), desc="calibrate", unit="layer", disable=not progress) as bar:
        for layer in range(max(chosen, default=-1) + 1):
            with stream.loaded(layer):
                if layer not in chosen:
                    for state in states:
                        state.forward(layer)
                    continue
                inputs = [state.router_inputs(layer) for state in states]
                features = [x.to(device) for x, _ in inputs]
                targets = [stream.router_weight(layer, source) for source in opened]
                start = stream.router_weight(layer)
                solution = solve_router(
                    features,
                    [target.to(device) for target in targets],
                    alpha=alpha,
                    beta=beta,
                    hessian=hessian,
                    activation=stream.routers[layer].activation,
                    init=start.to(device),
                    tol=tol,
                    max_iter=max_iter,
                    preconditioner=preconditioner,
                )
                weight = _store(solution, start, layer)
                weights[stream.routers[layer].checkpoint_key] = weight
                records.append(_record(stream, layer, solution, features, targets, start, weight))
                stream.set_router(layer, weight)
                for state, (x, split) in zip(states, inputs, strict=True):
                    state.complete(layer, x, split)
            bar.update()
            bar.set_postfix(layer=layer, kl=f"{records[-1].kl_before:.4f}→{records[-1].kl_after:.4f}")
    replace_tensors(stream.checkpoint, out, weights)
    settings = {"alpha": alpha, "beta": beta, "hessian": hessian, "layers": layers, "tol": tol, "max_iter": max_iter}
    return CalibrationReport(
        records, [state.tokens for state in states], time.perf_counter() - began, peak_memory_gb(), settings
    )


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


def _check(
    stream: LayerStream,
    sources: Sequence[Checkpoint],
    data: Sequence[Sequence[TokenSequence]],
    out: Path,
    min_tokens: int | None,
) -> None:
    if not sources or len(sources) != len(data):
        raise ValueError(f"expected calibration data for every source, found {len(sources)} sources, {len(data)} data")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there already; choose another name or remove it")
    vocabulary = stream.checkpoint.config.get("vocab_size", 0)
    for index, sequences in enumerate(data):
        tokens = sum(len(sequence) for sequence in sequences)
        least = next(iter(stream.routers.values())).weight.shape[1] if min_tokens is None else min_tokens
        if tokens < max(least, 1):
            raise ValueError(
                f"domain {index} ({sources[index].source}): {tokens} calibration tokens, at least {max(least, 1)} needed; "
                "a router fitted to fewer tokens than it has inputs follows their accidents"
            )
        largest = max(int(sequence.ids.max()) for sequence in sequences if len(sequence))
        if vocabulary and largest >= vocabulary:
            raise ValueError(f"domain {index}: token id {largest}; {stream.checkpoint.source} has {vocabulary} tokens")
    for source in sources:
        for layer, router in stream.routers.items():
            key, expected = router.checkpoint_key, stream.checkpoint.tensors[router.checkpoint_key]
            if key not in source:
                raise CheckpointError(
                    f"{source.source}: no router {key}; is it of the architecture of the merged model?"
                )
            if source.tensors[key].shape != expected.shape:
                raise CheckpointError(
                    f"{source.tensors[key].file}: router {key} has shape {source.tensors[key].shape}, "
                    f"{expected.shape} in {stream.checkpoint.source}"
                )
            if not torch.isfinite(stream.router_weight(layer, source)).all():
                raise CheckpointError(f"{source.tensors[key].file}: NaN or Inf in router {key}")
    for layer, router in stream.routers.items():
        if not torch.isfinite(stream.router_weight(layer)).all():
            raise CheckpointError(f"{stream.checkpoint.source}: NaN or Inf in router {router.checkpoint_key}")


def _store(solution: RouterSolution, start: Tensor, layer: int) -> Tensor:
    weight = solution.weight.to("cpu", start.dtype)
    if not torch.isfinite(weight).all():
        raise ValueError(f"layer {layer}: the solved router has values that {start.dtype} cannot hold")
    if not solution.converged:
        log.warning(
            "layer %d: the solve ended at residual %.2e after %d iterations (%s)",
            layer,
            solution.residual,
            solution.iterations,
            solution.reason,
        )
    return weight


def _record(
    stream: LayerStream,
    layer: int,
    solution: RouterSolution,
    features: Sequence[Float[Tensor, "tokens hidden"]],
    targets: Sequence[Float[Tensor, "experts hidden"]],
    before: Float[Tensor, "experts hidden"],
    after: Float[Tensor, "experts hidden"],
) -> LayerCalibration:
    activation = stream.routers[layer].activation
    pairs = list(zip(features, targets, strict=True))
    kl_before = [kl_on_features(x, target, before, activation) for x, target in pairs]
    kl_after = [kl_on_features(x, target, after, activation) for x, target in pairs]
    return LayerCalibration(
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
    )
