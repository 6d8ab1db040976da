"""Real vLLM: exact repeats, engine after engine in one process, the four real benchmarks end to end."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    # Not importorskip: importing vLLM takes seconds, which a run without the slow tests would pay too.
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SCRIPT = """
import json, sys, psutil
from eval.config import EngineConfig
from eval.engines import load_engine

prompts = [f"<|user|>\\nWhat is {i}?\\n<|assistant|>\\n" for i in range(12)]
settings = dict(n=16, temperature=1.0, max_tokens=24, seed=7)
config = EngineConfig(max_model_len=512, kv_cache_gb=0.25)
memory, drawn = [], []
for round in range(int(sys.argv[2])):
    engine = load_engine(config, sys.argv[1])
    drawn.append(engine.generate(prompts, **settings))
    if round == 0:
        drawn.append(engine.generate(prompts, **settings))
        engine.generate(prompts[3:5], n=2, temperature=0.5, max_tokens=9)
        drawn.append(engine.generate(prompts, **settings))
        other = engine.generate(prompts, **{**settings, "seed": 8})
        greedy = engine.generate(prompts[:1], n=3, temperature=0.0, max_tokens=8)
        try:
            engine.generate(["x" * 5000], n=1, temperature=0.0, max_tokens=8)
        except RuntimeError as error:
            refused = str(error)
    engine.close()
    memory.append(psutil.Process().memory_info().rss / 2**20)
json.dump({"same": all(texts == drawn[0] for texts in drawn), "other": other != drawn[0], "memory": memory,
           "greedy": len(set(greedy[0])), "distinct": len(set(drawn[0][0])), "refused": refused}, sys.stdout)
"""


def test_samples_repeat_exactly_and_memory_is_freed_engine_after_engine(model):
    """In a process of its own: vLLM binds threads and the memory of others would blur the measure."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), "5"], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["same"] and seen["other"]
    assert seen["greedy"] == 1 and seen["distinct"] > 8
    assert "the model's context holds 512" in seen["refused"]
    assert seen["memory"][-1] - seen["memory"][0] < 100, seen["memory"]


def test_one_command_takes_a_tiny_model_through_the_real_benchmarks(model, benchmarks, tmp_path):
    files = {
        "gsm8k": "gsm8k_test.jsonl",
        "math500": "math500.jsonl",
        "humaneval_plus": "HumanEvalPlus.jsonl.gz",
        "mbpp_plus": "MbppPlus.jsonl.gz",
    }
    command = [sys.executable, "-m", "eval", "--model", str(model), "--tasks", ",".join(files), "--out", str(tmp_path)]
    command += [
        "--limit",
        "20",
        "--max-new-tokens",
        "64",
        "--data",
        *(f"{t}={benchmarks / f}" for t, f in files.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert {task: len(result["counts"]) for task, result in results.items()} == dict.fromkeys(files, 20)
    assert all(result["samples"] == 16 and result["accuracy"] < 0.1 for result in results.values())
    assert results["mbpp_plus"]["ids"][0] == "Mbpp/2"
    for task in files:
        rows = [json.loads(line) for line in (tmp_path / "samples" / f"{task}.jsonl").read_text().splitlines()]
        assert [sum(response["count"] for response in row["responses"]) for row in rows] == [16] * 20
