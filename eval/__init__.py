"""Evaluation: tasks, engines, judges, and the sandbox that generated code runs in.

engine = load_engine(EngineConfig(), "path/to/checkpoint")
results = evaluate(engine, {"gsm8k": None}, samples=16, temperature=0.1, seed=0, out=Path("results"))
"""

from eval.config import EngineConfig
from eval.engines import Engine, EngineError, load_engine
from eval.evaluation import TASKS, evaluate
from eval.judges import judge

__all__ = ["TASKS", "Engine", "EngineConfig", "EngineError", "evaluate", "judge", "load_engine"]
