"""Evaluation: tasks, engines, judges, and the sandbox that generated code runs in.

engine = load_engine(EngineConfig(), "path/to/checkpoint")
results = evaluate(engine, {"gsm8k": None}, samples=16, temperature=0.1, seed=0, out=Path("results"))

Names are imported when first used, so that a command line need not wait for torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "TASKS": "eval.evaluation",
    "Engine": "eval.engines",
    "EngineConfig": "eval.config",
    "EngineError": "eval.engines",
    "check_tasks": "eval.evaluation",
    "evaluate": "eval.evaluation",
    "judge": "eval.judges",
    "load_engine": "eval.engines",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eval' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
