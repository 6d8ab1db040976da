"""What a check finds, in plain words, and the report of it all."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["problem", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    severity: `problem` makes the checkpoint unsound, `note` does not. topic: layout, values, movement, files, loading.
    text: in words, for people. tensors: published names, or places, that it is about, the first of them.
    """

    severity: Severity
    topic: str
    text: str
    tensors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Movement:
    """How far one parameter, or one expert's share of it, moved from the base, or from the sources' mean.

    layer: decoder layer, None outside of them; kind: its name without the layer; expert: None where it is no expert's.
    moved: ‖m − b‖ / ‖b‖; sources_moved: the same of each source.
    cosines: cosine of m − b with each source's s − b; None where one of the two is zero.
    explained: cosine of m − b with its projection on the sources' s − b: 1 for any weighted sum of them.
    scale: ⟨m, b⟩ / ⟨b, b⟩.
    """

    layer: int | None
    kind: str
    expert: int | None
    moved: float
    sources_moved: list[float]
    cosines: list[float | None]
    explained: float | None
    scale: float


@dataclass(frozen=True)
class CheckReport:
    """What a check found. sound: no problem; movements: of every parameter and expert that could be compared.

    checked: what was looked at; left_out: what was not, and why; engines: of each that was tried, what it gave.
    """

    model: str
    sources: list[str]
    base: str | None
    findings: list[Finding]
    movements: list[Movement]
    tensors: int
    parameters: int
    checked: list[str]
    left_out: list[str]
    engines: dict[str, dict[str, Any]]
    seconds: float

    @property
    def problems(self) -> list[Finding]:
        """The findings that make the checkpoint unsound."""
        return [one for one in self.findings if one.severity == "problem"]

    @property
    def sound(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-able values."""
        return {"sound": self.sound, **asdict(self)}


def numbers(values: Iterable[int]) -> str:
    """Numbers in words, runs drawn together: `0, 4–7`."""
    ordered = sorted(set(values))
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def counted(word: str, values: Sequence[int]) -> str:
    """`layer 3`, `experts 4–7`."""
    return f"{word}{'s' if len(set(values)) > 1 else ''} {numbers(values)}"
