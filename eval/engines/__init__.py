"""Engines: a checkpoint in, samples out. `load_engine` opens the one that the config names."""

from pathlib import Path

from eval.config import EngineConfig
from eval.engines.base import Engine, EngineError, request_seed

__all__ = ["Engine", "EngineError", "load_engine", "request_seed"]


def load_engine(config: EngineConfig, model: Path | str) -> Engine:
    """Opens `model`, a checkpoint directory or a hub id, with the engine that `config.kind` names.

    Engines hold much memory: close one before opening the next.

    Raises:
        EngineError: an unknown kind, a missing package, or a checkpoint that cannot be loaded.
    """
    _check_checkpoint(model)
    if config.kind == "vllm":
        from eval.engines.vllm_engine import VllmEngine

        return VllmEngine(config, model)
    if config.kind == "transformers":
        from eval.engines.transformers_engine import TransformersEngine

        return TransformersEngine(config, model)
    raise EngineError(f"unknown engine {config.kind!r}: choose vllm or transformers")


def _check_checkpoint(model: Path | str) -> None:
    path = Path(model)
    looks_local = isinstance(model, Path) or path.is_absolute() or str(model).startswith((".", "~"))
    if not path.exists():
        if looks_local:
            raise EngineError(f"{path}: no such checkpoint directory")
        return
    if not (path / "config.json").is_file():
        raise EngineError(f"{path}: no config.json; expected a Hugging Face checkpoint directory")
    if not any(path.glob("*.safetensors")):
        raise EngineError(f"{path}: no *.safetensors file; expected a Hugging Face checkpoint directory")
