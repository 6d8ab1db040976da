"""What a repair did: a record a layer and group of maps, and the report of them all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harc.repairing.least_squares import Step


@dataclass(frozen=True)
class MapsRepair:
    """One linear map of a layer, or one kind of map of all its routed experts.

    part: router, experts or attention; name: its module's path in the layer or MoE block; maps: how many; kept: how
    many of them stay as they were; ridges: how many were fitted with each λ. error_before, error_after: what the
    sources' outputs differ by, squared, over what they are squared, with the old and the new weights: on the text held
    out, or where none is on the text fitted to.
    """

    part: str
    name: str
    maps: int
    kept: int
    ridges: dict[str, int]
    error_before: float
    error_after: float

    @classmethod
    def of(cls, part: str, name: str, steps: Sequence[Step]) -> "MapsRepair":
        """Sums up the steps of maps of one kind."""
        energy = sum(step.energy for step in steps) or float("nan")
        return cls(
            part,
            name,
            len(steps),
            sum(step.weight is None for step in steps),
            dict(Counter(f"{step.ridge:g}" for step in steps if step.ridge is not None)),
            sum(step.error_before for step in steps) / energy,
            sum(step.error_after for step in steps) / energy,
        )


@dataclass(frozen=True)
class RouterRepair:
    """A layer's router: routing KL (nats, mean over domains) from what the sources route on their own inputs.

    kl_before, kl_after: with the old and the new router, on the text held out, or where none is on that fitted to;
    alpha, kept, converged, residual: see RouterSolution.
    """

    kl_before: float
    kl_after: float
    alpha: float | None
    kept: bool
    converged: bool
    residual: float


@dataclass(frozen=True)
class LayerRecord:
    """One layer: its maps, its router where that was fitted, and seconds in all."""

    layer: int
    maps: list[MapsRepair]
    router: RouterRepair | None
    seconds: float

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "LayerRecord":
        """The record as it was before it was written as JSON."""
        router = record["router"]
        return cls(
            record["layer"],
            [MapsRepair(**one) for one in record["maps"]],
            None if router is None else RouterRepair(**router),
            record["seconds"],
        )


@dataclass(frozen=True)
class RepairReport:
    """What a repair did. tokens: of each domain; seconds: in all; peak_memory_gb: of the process, resident."""

    layers: list[LayerRecord]
    tokens: list[int]
    seconds: float
    peak_memory_gb: float
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-able values."""
        return asdict(self)
