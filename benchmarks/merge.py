"""Merging against mergekit: the same methods on the same checkpoint, each in a process of its own.

    python benchmarks/merge.py [--architecture qwen3_moe|olmoe] [--methods ties dare …] [--json FILE]

Wall time, CPU time and peak memory, with imports left out of the times. All ratios are of one run on one machine. What
differs, and is not corrected for:
- ours reads every tensor once more beforehand to refuse NaN and Inf, and flushes the result to disk (fsync); mergekit
  does neither;
- ours works in float32 whatever is stored; mergekit in the dtype its configuration names, so it is run with both;
- mergekit merges and writes transformers' fused experts, ours the published tensors. Where a method works entry by
  entry (average, task arithmetic) the results are the same, and `difference` says how nearly; where it ranks a tensor's
  entries (TIES, SCE) or draws at random (DARE, DELLA) they are not: mergekit ranks over all experts of a layer at once.
Fisher, RegMean and WUDI have no counterpart in mergekit and are measured alone. What every method costs, on checkpoints
of your own: benchmarks/merge_costs.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

COUNTERPARTS = {
    "average": ("linear", {}, {}),
    "task_arithmetic": ("task_arithmetic", {"scale": 1.0, "weights": [0.6, 0.4]}, {}),
    "ties": ("ties", {"density": 0.2, "weights": [0.6, 0.4]}, {"density": 0.2}),
    "dare": ("dare_ties", {"density": 0.4, "weights": [0.6, 0.4]}, {"density": 0.4}),
    "della": ("della", {"density": 0.4, "epsilon": 0.15, "weights": [0.6, 0.4]}, {"density": 0.4, "epsilon": 0.15}),
    "sce": ("sce", {"density": 0.1}, {}),
}
ALONE: dict[str, dict[str, object]] = {"wudi": {"steps": 30}, "fisher": {}, "regmean": {}}
SIZES = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 16384,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(run_child(json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory(prefix="bench-merge-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        size = make_models(folder, options.architecture, options.experts, options.layers)
        rows: list[dict[str, Any]] = []
        result = {"architecture": options.architecture, "model_gb": size / 1e9, "threads": threads(), "rows": rows}
        for method in options.methods:
            rows += measure(method, folder, options)
            if options.json:  # after each method: a long run that is stopped keeps what it measured
                options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


def measure(method: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs ours and mergekit's in turn; keeps each one's best of `repeats`."""
    jobs: dict[str, dict[str, Any]] = {}
    if method in COUNTERPARTS:
        name, ours, theirs = COUNTERPARTS[method]
        jobs["harc"] = {"tool": "harc", "method": method, "settings": ours}
        for dtype in ("float32", "bfloat16"):
            jobs[f"mergekit {dtype}"] = {
                "tool": "mergekit", "method": name, "settings": theirs, "dtype": dtype, "weights": ours.get("weights")
            }  # fmt: skip
    else:
        jobs["harc"] = {"tool": "harc", "method": method, "settings": ALONE[method], "data": True}
    runs: dict[str, list[dict[str, float]]] = {label: [] for label in jobs}
    outs = {label: folder / f"out-{label.replace(' ', '-')}" for label in jobs}
    for repeat in range(options.repeats):
        for label, job in jobs.items():
            subprocess.run(["rm", "-rf", str(outs[label])], check=True)
            sys.stderr.write(f"{method} · {label} · {repeat + 1} of {options.repeats}\n")
            models = {"base": str(folder / "base"), "sources": [str(folder / "first"), str(folder / "second")]}
            runs[label].append(child({**job, **models, "out": str(outs[label])}, options.timeout))
    rows = []
    for label, results in runs.items():
        best = {key: min(result[key] for result in results) for key in results[0]}
        rows.append({"method": method, "tool": label, **best, "difference": difference(outs["harc"], outs[label])})
    for row in rows:
        row["ratios"] = {key: row[key] / rows[0][key] for key in ("seconds", "cpu_seconds", "peak_gb", "private_gb")}
    for out in outs.values():
        subprocess.run(["rm", "-rf", str(out)], check=True)
    return rows


def child(job: dict[str, Any], timeout: float) -> dict[str, float]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"{job['tool']} {job['method']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_child(job: dict[str, Any]) -> dict[str, float]:
    base, sources, out = Path(job["base"]), [Path(source) for source in job["sources"]], job["out"]
    merge = (
        prepare_harc(job, base, sources, out) if job["tool"] == "harc" else prepare_mergekit(job, base, sources, out)
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    with PrivateMemory() as private:
        start = time.perf_counter()
        merge()
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gb": after.ru_maxrss * 1024 / 1e9,  # mapped files included
        "private_gb": private.peak / 1e9,  # without them
    }


def prepare_harc(job: dict[str, Any], base: Path, sources: list[Path], out: str) -> Any:
    import torch

    from harc.merging import METHODS, merge
    from harc.tokens import TokenSequence

    assert METHODS  # imported before the clock starts
    data = None
    if job.get("data"):
        generator = torch.Generator().manual_seed(0)
        vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
        draw = [torch.randint(3, vocabulary, (64,), generator=generator) for _ in range(32 * len(sources))]
        data = [[TokenSequence(ids, 16) for ids in draw[i :: len(sources)]] for i in range(len(sources))]
        data = data if METHODS[job["method"]].kind == "data" else None
    return lambda: merge(job["method"], sources, base, out, data=data, progress=False, device="cpu", **job["settings"])


def prepare_mergekit(job: dict[str, Any], base: Path, sources: list[Path], out: str) -> Any:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    weights = job["weights"] or [0.5, 0.5]
    models = []
    for source, weight in zip(sources, weights, strict=True):
        own = {} if job["method"] == "sce" else {"weight": weight}
        models.append({"model": str(source), "parameters": {**own, **job["settings"]}})
    content: dict[str, Any] = {
        "merge_method": job["method"], "models": models, "dtype": job["dtype"], "out_dtype": "bfloat16"
    }  # fmt: skip
    if job["method"] != "linear":
        content["base_model"] = str(base)
    if job["method"] == "sce":
        content["parameters"] = {"select_topk": 0.1}
    config = MergeConfiguration.model_validate(content)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    return lambda: run_merge(config, out, options)


class PrivateMemory:
    """The peak of the process's anonymous memory: what it allocated, without mapped files. Sampled every 5 ms."""

    def __enter__(self) -> "PrivateMemory":
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, private_bytes())


def private_bytes() -> int:
    """The process's anonymous memory: what it allocated, without mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def make_models(folder: Path, architecture: str, experts: int, layers: int) -> int:
    """A random base and two sources near it, in bfloat16; returns one model's size in bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"olmoe": {"intermediate_size": 512}, "qwen3_moe": {"moe_intermediate_size": 512, "head_dim": 64}}
    sizes = {**SIZES, "num_experts": experts, "num_hidden_layers": layers, **special[architecture]}
    config = AutoConfig.for_model(architecture, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base")
    start = {name: value.clone() for name, value in model.named_parameters()}
    for name in ("first", "second"):
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(start[key] + 2e-3 * torch.randn_like(value))
        model.save_pretrained(folder / name)
    return sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))


def difference(ours: Path, theirs: Path) -> float | None:
    """Largest relative difference (Frobenius) of a parameter, both checkpoints as transformers loads them."""
    from transformers import AutoModelForCausalLM

    if ours == theirs:
        return None
    first, second = (AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict() for path in (ours, theirs))
    pairs = ((value.float(), second[name].float()) for name, value in first.items())
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{result['architecture']}, {result['model_gb']:.2f} GB a model, 3 models read, {result['threads']} thread(s)"
    )
    table = Table(title=title)
    for column in ("method", "tool", "wall s", "×", "CPU s", "×", "peak GB", "×", "private GB", "×", "difference"):
        table.add_column(column, justify="left" if column in ("method", "tool") else "right")
    for row in result["rows"]:
        cells = [row["method"], row["tool"]]
        for key in ("seconds", "cpu_seconds", "peak_gb", "private_gb"):
            cells += [f"{row[key]:.2f}", f"{row['ratios'][key]:.1f}"]
        table.add_row(*cells, "" if row["difference"] is None else f"{row['difference']:.1e}")
    Console(width=120).print(table)


def threads() -> int:
    import torch

    return torch.get_num_threads()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=["qwen3_moe", "olmoe"], default="qwen3_moe")
    parser.add_argument("--methods", nargs="+", choices=[*COUNTERPARTS, *ALONE], default=[*COUNTERPARTS, *ALONE])
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1, help="the best of this many is kept")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one merge")
    parser.add_argument("--scratch", type=Path, help="where the checkpoints are made")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
