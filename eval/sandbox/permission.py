"""Whether generated code may run here: where the probe shows that the sandbox holds, otherwise by permission only."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar

from eval.sandbox.isolation import INSTALL, isolation
from eval.sandbox.probe import Proof, prove
from eval.sandbox.process import SandboxError, Template

log = logging.getLogger(__name__)

_AROUND = {
    "bubblewrap": "bubblewrap (own processes, network and file system)",
    "unshare": "namespaces (own processes and network where the system allows it)",
    "limits": "nothing but its own lockdown",
}

# lm-eval hands a task's functions responses and documents alone; this is how the setting reaches them.
_allowed: ContextVar[bool] = ContextVar("allow_unsandboxed", default=False)


@contextlib.contextmanager
def allowing(allow_unsandboxed: bool) -> Iterator[None]:
    """Sets what `allowed` says within the block."""
    token = _allowed.set(allow_unsandboxed)
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed() -> bool:
    """Whether generated code may run where the sandbox does not hold."""
    return _allowed.get()


def require(allow_unsandboxed: bool) -> None:
    """Proves the sandbox once a process, in about a second; see `accept`."""
    if not allow_unsandboxed:
        accept(isolation().mode, _proof(), allow_unsandboxed)


def accept(mode: str, proof: Proof, allow_unsandboxed: bool) -> None:
    """Says what the sandbox holds, once a process.

    Args:
        mode: what stands around the interpreter.
        proof: what the probe found.
        allow_unsandboxed: whether generated code may run where something does not hold.

    Raises:
        SandboxError: something does not hold, and that is not allowed.
    """
    fell = "; ".join(f"{kind} ({', '.join(tried)})" for kind, tried in proof.fell.items())
    if fell and not allow_unsandboxed:
        raise SandboxError(
            f"the sandbox does not hold on this machine ({mode}): {fell}"
            + (f"; {proof.trouble}" if proof.trouble else "")
            + f". Generated code is not run. {INSTALL[0].upper()}{INSTALL[1:]}, or allow it on a machine that you can "
            "lose: evaluate.allow_unsandboxed=true (python -m eval: --allow-unsandboxed)"
        )
    _announce(mode, ", ".join(proof.held) or "nothing", fell, proof.trouble)


@functools.cache
def _announce(mode: str, held: str, fell: str, trouble: str) -> None:
    whole = mode == "bubblewrap" and not fell and not trouble
    log.log(
        logging.INFO if whole else logging.WARNING,
        "generated code runs in a locked process, around it %s; tried and refused: %s; not refused: %s%s%s",
        _AROUND[mode],
        held,
        fell or "nothing",
        f"; missing: {trouble}" if trouble else "",
        "" if whole else f" (for more, {INSTALL})",
    )


@functools.cache
def _proof() -> Proof:
    with Template(isolation()) as template:
        return prove(template)
