"""Settings of an engine, as one typed record that the pipeline's own configs reuse."""

from dataclasses import dataclass


@dataclass
class EngineConfig:
    """How a model is loaded and run.

    Attributes:
        kind: "vllm" or "transformers".
        dtype: "auto" is float32 on a CPU and bfloat16 on a GPU; else "float32", "bfloat16" or "float16".
        max_model_len: tokens of prompt and response together; None takes the model's own context.
        max_num_seqs: sequences generated side by side (vllm); on a CPU a wide batch hides Python's cost per step.
        batch_size: sequences generated side by side (transformers).
        kv_cache_gb: GiB of key-value cache when vllm runs on a CPU.
        tensor_parallel_size: GPUs that share one model (vllm).
        gpu_memory_utilization: share of a GPU's memory that vllm takes.
        enforce_eager: run vllm without compiling graphs; None is True on a CPU (compiling costs minutes there).
        seed: the engine's own seed; samples are seeded a request, see `Engine.generate`.
        allow_unsandboxed: whether code that the model writes may be judged where the sandbox does not hold.
    """

    kind: str = "vllm"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 512
    batch_size: int = 64
    kv_cache_gb: float = 1.0
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool | None = None
    seed: int = 0
    allow_unsandboxed: bool = False
