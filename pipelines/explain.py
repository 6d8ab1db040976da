"""Errors in one line that a user can act on."""

from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


def explain(error: BaseException) -> str:
    """One line a user can act on, for any error; composition errors name what would have been valid."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_composition(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | RuntimeError | ImportError | MemoryError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _explain_composition(error: BaseException) -> str:
    causes: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in causes:
        causes.append(at)
        at = at.__cause__ or at.__context__
    text = "; ".join(filter(None, dict.fromkeys(_first_lines(cause) for cause in causes)))
    for cause in causes:
        valid = _valid_keys(cause)
        if valid:
            return f"{text} (valid keys there: {', '.join(valid)})"
    return text


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(kept).split(" Config search path:")[0]
    return "" if "$VALUE" in text else text.replace("Available options", "; available options")


def _valid_keys(error: BaseException) -> list[str]:
    node: Any = getattr(error, "parent_node", None)
    if isinstance(error, OmegaConfBaseException) and isinstance(node, DictConfig) and "not in" in str(error):
        return sorted(str(key) for key in node)
    return []
