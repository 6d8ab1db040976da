"""What only a GPU can run, run once: `make gpu-check`, or python benchmarks/gpu_check.py [--small] [--out DIR].

solve      one router's fit in bf16 and fp32 at OLMoE's width: true residual, the routers' difference, and the rate of
           its products beside that of a square matrix product in the same run
calibrate  the routers of a random OLMoE layer by layer on the GPU, against the same on the CPU
train      two bf16 steps over float32 master weights
fsdp       the same, launched in one process with conf/accelerate/fsdp.yaml
vllm       greedy answers of vLLM's GPU build beside those of transformers

Each part passes, fails or is skipped with its reason, and none stops the others. The report is DIR/report.md and
report.json; the exit status is 1 if a part failed. --small: tiny shapes, to try the script itself, on a CPU too: a part
that computes on any device then runs on the CPU and says so.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harc
from harc.models.architectures import tiny_model
from harc.solver.solve import solve_router
from harc.tokens import TokenSequence
from pipelines.data.source import DataSource
from pipelines.rehearsal.stand_ins import write_stand_ins
from pipelines.stages.finetune import FinetuneConfig
from pipelines.stages.pretrain import ArchitectureConfig
from pipelines.stages.random_base import RandomBaseConfig, random_base
from pipelines.stages.stand_ins import StandInsConfig
from pipelines.training.settings import LaunchConfig, TrainConfig

Measured = dict[str, Any]


class Skip(Exception):
    """Why a part cannot run here."""


class Check:
    """The parts, and what they share: a device, a folder, shapes."""

    def __init__(self, folder: Path, small: bool):
        self.folder, self.small = folder, small
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self.hidden, self.experts, self.width = (64, 8, 32) if small else (2048, 64, 1024)
        self.tokens = 500 if small else 40_000

    def need_device(self) -> None:
        if not self.on_gpu and not self.small:
            raise Skip("torch sees no GPU here")

    def need_gpu(self) -> None:
        if not self.on_gpu:
            raise Skip("torch sees no GPU here")

    def solve(self) -> Measured:
        self.need_device()
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(self.hidden, self.hidden, generator=generator) / self.hidden**0.5
        features = [torch.randn(self.tokens, self.hidden, generator=generator) @ mixing for _ in range(2)]
        routers = [torch.randn(self.experts, self.hidden, generator=generator) / self.hidden**0.5 for _ in range(2)]
        placed = [x.to(self.device, torch.bfloat16) for x in features]
        own = [w.to(self.device) for w in routers]
        start = torch.stack(own).mean(0)
        found: Measured = {"tokens": 2 * self.tokens, "hidden": self.hidden, "experts": self.experts}
        weights = {}
        for dtype in (torch.bfloat16, torch.float32):
            given = [x.to(dtype) for x in placed]
            solve_router(given, own, init=start)  # once to warm up
            seconds, solution = self.timed(lambda given=given: solve_router(given, own, init=start))
            name = str(dtype).removeprefix("torch.")
            products = 4.0 * found["tokens"] * self.hidden * self.experts * solution.iterations
            rate = self.matmul_rate(dtype)
            found[name] = {
                "seconds": seconds, "iterations": solution.iterations, "residual": solution.residual,
                "products_tflops": products / seconds / 1e12, "matmul_tflops": rate / 1e12,
                "share_of_matmul": products / seconds / rate,
            }  # fmt: skip
            weights[name] = solution.weight
            if not solution.converged:
                raise AssertionError(f"{name}: not converged, residual {solution.residual:.1e}")
        found["difference"] = difference(weights["bfloat16"], weights["float32"])
        if found["difference"] > 1e-2:
            raise AssertionError(f"the routers differ by {found['difference']:.1e}")
        return found

    def calibrate(self) -> Measured:
        self.need_device()
        merged, sources, data = self.family()
        found: Measured = {"layers": 2, "tokens": sum(len(one) for part in data for one in part)}
        kl = {}
        for device in dict.fromkeys([self.device, "cpu"]):
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            report = harc.calibrate(merged, sources, data, out=self.folder / device, device=device, progress=False)
            kl[device] = [layer.kl_after for layer in report.layers]
            held = torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else None
            found[device] = {"seconds": report.seconds, "kl_after": kl[device], "device_gb": held}
        for here, there in zip(kl[self.device], kl["cpu"], strict=True):
            if abs(here - there) > 0.05 * there + 1e-4:
                raise AssertionError(f"routing KL on the GPU {here:.3e}, on the CPU {there:.3e}")
        return found

    def train(self) -> Measured:
        from pipelines.training.run import train

        self.need_device()
        world, base = self.base()
        out = self.folder / "trained"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, metrics = self.timed(lambda: train("finetune", self.finetuning(), {"base": base, "world": world}, out))
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else None
        return {"seconds": seconds, "loss": metrics["loss"], "parameters": metrics["parameters"], "device_gb": peak}

    def fsdp(self) -> Measured:
        from pipelines.training.launch import launch_training, write_job

        self.need_gpu()
        world, base = self.base()
        work = self.folder / "sharded" / ".work"
        write_job(work, "finetune", self.finetuning(), {"base": base, "world": world})
        seconds, metrics = self.timed(lambda: launch_training(work, LaunchConfig(1, "fsdp")))
        return {"seconds": seconds, "loss": metrics["loss"], "parameters": metrics["parameters"]}

    def vllm(self) -> Measured:
        from eval.config import EngineConfig
        from eval.engines import load_engine

        self.need_gpu()
        if find_spec("vllm") is None:
            raise Skip("vllm is not installed (pip install 'harc[gpu]')")
        _, base = self.base()
        prompts = ["1 + 2 =", "Sam has 3 apples.", "def add(a, b):", "Let's think step by step."]
        answers = {}
        found: Measured = {}
        for kind in ("transformers", "vllm"):
            engine = load_engine(EngineConfig(kind, dtype="bfloat16", max_model_len=256), base)
            try:
                found[f"{kind}_seconds"], answers[kind] = self.timed(
                    lambda engine=engine: engine.generate(prompts, n=1, temperature=0.0, max_tokens=16)
                )
            finally:
                engine.close()
        pairs = zip(answers["transformers"], answers["vllm"], strict=True)
        found["same_answers"] = f"{sum(ours == theirs for ours, theirs in pairs)} of {len(prompts)}"
        return found

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds on the clock of work that ends on the device, and its result."""
        began = time.perf_counter()
        result = work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began, result

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """Operations a second of a square product, the best of five."""
        size = 8192 if self.on_gpu else 512
        a = torch.randn(size, size, device=self.device).to(dtype)
        a @ a
        return 2.0 * size**3 / min(self.timed(lambda: a @ a)[0] for _ in range(5))

    def base(self) -> tuple[Path, Path]:
        """Stand-in data, and a random OLMoE of two layers of the width asked for."""
        world, base = self.folder / "world", self.folder / "base"
        if not base.exists():
            write_stand_ins(StandInsConfig(train=32), world)
            heads = 2 if self.small else 16
            settings = {
                "hidden_size": self.hidden, "intermediate_size": self.width, "num_experts": self.experts,
                "num_experts_per_tok": min(8, self.experts // 2), "num_hidden_layers": 2,
                "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 1024,
                "max_position_embeddings": 512,
            }  # fmt: skip
            base.mkdir(parents=True)
            random_base(RandomBaseConfig(ArchitectureConfig("olmoe", settings)), {"world": world}, base)
        return world, base

    def finetuning(self) -> FinetuneConfig:
        train = TrainConfig(
            steps=2, batch_size=4, micro_batch_size=1, max_length=256, packing=True, gradient_checkpointing=True,
            dtype="bfloat16", chat_template="tulu.jinja", log_steps=1,
        )  # fmt: skip
        return FinetuneConfig(data=DataSource("world:train/math.jsonl", "messages"), train=train)

    def family(self) -> tuple[Path, list[Path], list[list[TokenSequence]]]:
        """A random merged model, two sources near it, and text."""
        settings = {
            "hidden_size": self.hidden, "num_experts": self.experts, "intermediate_size": self.width,
            "num_hidden_layers": 2,
        }  # fmt: skip
        torch.manual_seed(0)
        model = tiny_model("olmoe", dtype=torch.bfloat16, **settings)
        paths = [self.folder / name for name in ("merged", "source0", "source1")]
        for number, path in enumerate(paths):
            if number:
                for parameter in model.parameters():
                    noise = torch.randn_like(parameter) * parameter.float().std().nan_to_num().to(parameter.dtype)
                    parameter.data += 0.1 * noise
            model.save_pretrained(path)
        generator = torch.Generator().manual_seed(1)
        lengths = [64] * (2 * self.hidden // 64 + 8)
        vocabulary = model.config.vocab_size
        text = [
            [TokenSequence(torch.randint(3, vocabulary, (n,), generator=generator), 2) for n in lengths] for _ in "ab"
        ]
        return paths[0], paths[1:], text


def difference(first: Tensor, second: Tensor) -> float:
    """Relative Frobenius norm of a difference."""
    return float((first - second).norm() / second.norm())


PARTS = ("solve", "calibrate", "train", "fsdp", "vllm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "small": options.small, "parts": {}}
    for name in options.parts:
        result["parts"][name] = run(name, options.small)
        sys.stdout.write(f"{name}: {line(result['parts'][name])}\n")
        sys.stdout.flush()
        (options.out / "report.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "report.md").write_text(markdown(result))
    sys.stdout.write(f"report: {options.out / 'report.md'}\n")
    return int(any(part["status"] == "failed" for part in result["parts"].values()))


def run(name: str, small: bool) -> Measured:
    """A part's status, with what it measured, why it was skipped, or how it failed."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        try:
            return {"status": "passed", "measured": getattr(Check(Path(folder), small), name)()}
        except Skip as reason:
            return {"status": "skipped", "reason": str(reason)}
        except Exception as error:
            traceback.print_exc()
            return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


def line(part: Measured) -> str:
    """A part in a line."""
    said = json.dumps(part["measured"], default=str) if "measured" in part else part["reason"]
    return f"{part['status']}, {said}"


def markdown(result: Measured) -> str:
    """The report as a page."""
    rows = [
        f"| {name} | {part['status']} | {line(part).partition(', ')[2]} |" for name, part in result["parts"].items()
    ]
    head = f"# GPU check: {result['device']}, torch {result['torch']}\n\n| part | status | measured, or why not |\n"
    return head + "| --- | --- | --- |\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
