"""What a calibration did: a record a layer, and the report of them all."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from harc.models.streaming import LayerStream
from harc.parallel import reduce_sum
from harc.solver.newton import domain_kls
from harc.solver.solution import RouterSolution

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerCalibration:
    """One layer's record.

    iterations, residual, converged, residuals, reason, preconditioner, alpha, kept, held_out_kl, kl_steps: see
    RouterSolution; seconds: wall time of the fit, forward_seconds: of taking all tokens through the layer, reading its
    weights included; kl_before, kl_after: routing KL (nats) on the tokens fitted to, from the target's distribution,
    mean over domains, with the merged and the calibrated router; kl_before_domains, kl_after_domains: of each domain.
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
    forward_seconds: float = 0.0


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
        """The report as plain JSON-able values; `unconverged` lists the solves that stopped short, and where."""
        short = [
            {"layer": one.layer, "residual": one.residual, "reason": one.reason}
            for one in self.layers
            if not one.converged
        ]
        return {**asdict(self), "converged": self.converged, "unconverged": short}


def record_layer(
    stream: LayerStream,
    layer: int,
    solution: RouterSolution,
    features: Sequence[Float[Tensor, "tokens hidden"]],
    routers: Sequence[Float[Tensor, "experts hidden"]],
    targets: Sequence[Float[Tensor, "tokens experts"]] | None,
    forward_seconds: float,
    rounded: bool = True,
) -> tuple[Float[Tensor, "experts hidden"], LayerCalibration]:
    """The weight that the calibration goes on with, and the layer's record, which is about the weight as stored.

    rounded: whether the former is the stored one too, or the weight as solved.

    Raises:
        ValueError: a weight that the dtype it is stored in cannot hold.
    """
    before = stream.router_weight(layer)
    weight = solution.weight.to("cpu", before.dtype)
    if not torch.isfinite(weight).all():
        raise ValueError(f"layer {layer}: the solved router has values that {before.dtype} cannot hold")
    if not solution.converged:
        log.warning("layer %d: %s at residual %.2e", layer, solution.reason, solution.residual)
    activation, reduce = stream.routers[layer].activation, reduce_sum
    kl_before, kl_after = (domain_kls(features, routers, w, activation, reduce, targets) for w in (before, weight))
    return weight if rounded else solution.weight.cpu(), LayerCalibration(
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
        forward_seconds=forward_seconds,
    )
