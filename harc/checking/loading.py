"""Whether engines load the model, each in a process of its own, and predict the same tokens with it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harc.checking.findings import Finding
from harc.checkpoint import Checkpoint, CheckpointError
from harc.tokens import load_tokenizer

TOLERANCE = {"cpu": 1e-3, "cuda": 0.25}
"""Nats that two engines' log-probabilities may differ by: float32 products in another order on a CPU; on a GPU, where
both compute in bfloat16, a few of its roundings."""

_TEXT = "What is 12 times 7? Let us work it out: 12 * 7 = 84.\ndef add(a, b):\n    return a + b\n"
_TOKENS = 32
_SECONDS = 900


def check_loading(
    model: Checkpoint, engines: Sequence[str]
) -> tuple[list[Finding], dict[str, dict[str, Any]], list[str]]:
    """Findings; what each engine gave; which engines were left out, and why."""
    left_out, found = [], {}
    findings: list[Finding] = []
    ids = _ids(model)
    for engine in engines:
        if importlib.util.find_spec(engine) is None:
            left_out.append(f"{engine}: not installed")
        elif (free := _free_bytes()) is not None and _in_float32(model) > free:
            left_out.append(
                f"{engine}: the model needs {_in_float32(model) / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
            )
        else:
            found[engine] = _run(engine, model, ids)
            findings += _said(engine, found[engine])
    if all("log_probs" in found.get(engine, {}) for engine in ("transformers", "vllm")):
        findings += _agreement(found)
    return findings, {name: _summary(one) for name, one in found.items()}, left_out


def _run(engine: str, model: Checkpoint, ids: list[int]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONSTARTUP", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "harc.checking.worker", engine, str(model.folder.absolute())],
            input=json.dumps({"ids": ids}),
            capture_output=True,
            text=True,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer after {_SECONDS} s"}
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return {"error": next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "died")}
    return json.loads(done.stdout.splitlines()[-1])


def _said(engine: str, found: dict[str, Any]) -> list[Finding]:
    if "error" in found:
        return [Finding("problem", "loading", f"{engine} does not load it: {found['error'][:400]}")]
    words = {
        "missing_keys": "has no weights for {} parameters, and makes them up",
        "unexpected_keys": "has no use for {} tensors",
        "mismatched_keys": "finds {} tensors of another shape, and makes them up",
    }
    return [
        Finding("problem", "loading", f"{engine} {words[key].format(len(names))}, {names[0]} for one", names[:8])
        for key, names in found["load"].items()
        if key in words
    ]


def _agreement(found: dict[str, dict[str, Any]]) -> list[Finding]:
    difference = largest_difference(found["transformers"]["log_probs"], found["vllm"]["log_probs"])
    for engine in found.values():
        engine["largest_difference"] = difference
    limit = tolerance()
    if difference <= limit:
        return []
    return [
        Finding(
            "problem",
            "loading",
            f"transformers and vllm predict differently: log-probabilities differ by up to {difference:.3g} nats "
            f"(tolerance {limit:g}): one of them does not read all weights as they are meant",
        )
    ]


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest difference of two engines' log-probabilities, in nats, over the tokens that both gave."""
    return max(abs(a[token] - b[token]) for a, b in zip(one, other, strict=True) for token in a.keys() & b.keys())


def tolerance() -> float:
    """Nats that engines may differ by on this machine."""
    import torch

    return TOLERANCE["cuda" if torch.cuda.is_available() else "cpu"]


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if key != "log_probs"}
    return {**kept, "predictions": len(found.get("log_probs", []))}


def _ids(model: Checkpoint) -> list[int]:
    """A few tokens: of a line of prose and code, or, where there is no tokenizer, the first ids."""
    vocabulary = int(model.config.get("vocab_size") or 64)
    try:
        ids = load_tokenizer(model.folder)(_TEXT, add_special_tokens=False)["input_ids"][:_TOKENS]
    except CheckpointError:
        ids = []
    fitting = [index for index in ids if index < vocabulary]
    return fitting if len(fitting) > 4 else list(range(3, min(vocabulary, _TOKENS)))


def _in_float32(model: Checkpoint) -> float:
    """Bytes that an engine takes, about: the weights in float32, and what it computes with."""
    return sum(4 * info.bytes / info.dtype.itemsize for info in model.tensors.values()) * 1.2 + 2e9


def _free_bytes() -> int | None:
    """Memory that is free on this machine; None where it cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
