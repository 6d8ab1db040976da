"""How one call of the command line ended, told by what runs inside Hydra, which passes nothing on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What happened inside Hydra."""

    errors: list[Exception] = field(default_factory=list)
    """What a cell alone, or a sweep before its cells, raised."""

    status: int = 0
    """1 if a cell of a sweep failed or is missing."""

    queued: bool = False
    """Whether a queue was left with the stages and the report."""


_current: ContextVar[Outcome | None] = ContextVar("outcome", default=None)


@contextmanager
def gathered() -> Iterator[Outcome]:
    """Within it, `noted` is the outcome that is given."""
    outcome = Outcome()
    token = _current.set(outcome)
    try:
        yield outcome
    finally:
        _current.reset(token)


def noted() -> Outcome | None:
    """The outcome of the call of the command line at work here; None in a parallel launcher's process."""
    return _current.get()


def note_queued() -> None:
    """A queue was left with the stages and the report of this call."""
    if (outcome := noted()) is not None:
        outcome.queued = True
