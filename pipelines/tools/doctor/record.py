"""All that the doctor measured, and its record as JSON."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.tools.doctor.examination import (
    Examination,
    Interval,
    Recommendation,
    Value,
    merged,
    merged_routed,
    routing,
    source,
    source_routed,
    weights,
)
from pipelines.tools.doctor.lost_responses import Kept, Lost

MODELS: list[tuple[str, Value]] = [
    ("sources", source),
    ("sources, routed as the merge", source_routed),
    ("merge, routed as the sources", merged_routed),
    ("merge", merged),
]


@dataclass(frozen=True)
class Findings:
    """All that was measured. kinds: of each domain, mismatch of each kind of token by layer; kept: a domain each."""

    merged: str
    sources: list[str]
    data: list[str]
    exam: Examination
    advice: Recommendation
    kinds: list[dict[str, list[float] | None]]
    kept: list[Kept]
    lost: list[Lost]
    fit_tokens: int
    held_tokens: int
    refused: list[str]


def record_of(found: Findings) -> dict[str, Any]:
    """The record as plain JSON-able values."""
    exam = found.exam
    every = [None, *range(len(exam.domains))]

    def by_domain(estimate: Callable[[int | None], Interval]) -> dict[str, Any]:
        return {"mean" if i is None else exam.domains[i]: dataclasses.asdict(estimate(i)) for i in every}

    share = exam.share()
    return {
        "merged": found.merged,
        "sources": found.sources,
        "data": found.data,
        "recommendation": dataclasses.asdict(found.advice),
        "losses": {name: by_domain(lambda i, of=of: exam.loss(of, i)) for name, of in MODELS},  # type: ignore[misc]
        "cost": by_domain(lambda i: exam.difference(merged, source, i)),
        "routing": by_domain(lambda i: exam.loss(routing, i)),
        "weights": by_domain(lambda i: exam.loss(weights, i)),
        "routing_share": None if share is None else dataclasses.asdict(share),
        "remedies": [
            {
                "name": one.name,
                "command": one.command,
                "gain": by_domain(lambda i, one=one: exam.gain(one, i)),  # type: ignore[misc]
                "routing_kl": one.kl,
                "mismatch": one.mismatch,
                "seconds": one.seconds,
                "tokens": one.tokens,
                "memory_gb": one.memory_gb,
            }
            for one in exam.trials
        ],
        "refused": found.refused,
        "mismatch": {
            name: dict(zip(map(str, part.layers), part.mismatch.double().mean(1).tolist(), strict=True))
            for name, part in zip(exam.domains, exam.parts, strict=True)
        },
        "mismatch_by_kind": dict(zip(exam.domains, found.kinds, strict=True)),
        "kept": {name: dataclasses.asdict(one) for name, one in zip(exam.domains, found.kept, strict=True)},
        "lost": [dataclasses.asdict(one) for one in found.lost],
    }
