"""Calibrating a random OLMoE of real width from a checkpoint on disk: time a layer and peak memory.

    python benchmarks/calibrate.py [--layers 2] [--hidden 2048] [--experts 64] [--tokens 20000] [--json FILE]

The calibration runs in a process of its own. Its peak is the most anonymous memory (RssAnon, sampled every 5 ms), less
what there was before: Python, libraries and the model without weights. It is set beside the features (hidden states and
router inputs of all tokens, and the sources' hidden states where they run in lockstep) and one layer's weights, and so
is each phase of a layer. The kernel's own peak (VmHWM, also less what was before) is printed beside it: it counts
mapped files too, the libraries' code that is touched on the way and pages of the checkpoint, which are the page
cache's. Wall and CPU seconds; on a busy machine read the latter. Then a PROJECTION, not a measurement, to 16 and 48
layers and 7000 samples a domain: linear in layers and in tokens, which overstates the solve (building a preconditioner
does not grow with them).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

SOURCES = ("math", "code")
REAL_SAMPLES = 7000


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-calibrate-", dir=options.scratch) as scratch:
        make_models(Path(scratch), options)
        command = [sys.executable, __file__, *sys.argv[1:], "--child", scratch]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--width", type=int, default=1024, help="an expert's inner width")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--tokens", type=int, default=20000, help="a domain")
    parser.add_argument("--length", type=int, default=500, help="tokens a sample")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the checkpoints")
    parser.add_argument("--target", default="merged_inputs", help="or source_inputs, with the sources in lockstep")
    parser.add_argument("--preconditioner", default="auto")
    parser.add_argument("--memory-budget-gb", type=float)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scratch", type=Path, help="where the checkpoints are made: about 6 GB")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import harc
    from harc.calibration.resume import Progress
    from harc.models.streaming import LayerStream
    from harc.tokens import TokenSequence

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    count = options.tokens // options.length
    data = [
        [
            TokenSequence(torch.randint(3, options.vocabulary, (options.length,), generator=generator), 0)
            for _ in range(count)
        ]
        for _ in SOURCES
    ]
    routers = LayerStream(folder / "merged").routers
    assert len(routers) == options.layers
    before, anonymous, cpu = resident("VmRSS"), resident("RssAnon"), time.process_time()
    with Phases() as phases:
        report = harc.calibrate(
            folder / "merged",
            [folder / name for name in SOURCES],
            data,
            out=folder / "out",
            target=options.target,
            preconditioner=options.preconditioner,
            memory_budget_gb=options.memory_budget_gb,
            progress=False,
        )
    cpu, kernel_peak = time.process_time() - cpu, resident("VmHWM") - before
    peak = max(phases.most.values()) - anonymous
    tokens = sum(report.tokens)
    dtype = getattr(torch, options.dtype)
    states = tokens * options.hidden * dtype.itemsize
    features = states * (3 if options.target == "source_inputs" else 2)
    layer = dtype.itemsize * (options.experts * (3 * options.width + 1) * options.hidden + 4 * options.hidden**2)
    samples = len(SOURCES) * REAL_SAMPLES * options.length / tokens
    kept = Progress(folder / "resume", "")
    written = time.perf_counter()
    kept.save_states(0, [torch.zeros(tokens, options.hidden, dtype=dtype)], float("inf"))
    written = time.perf_counter() - written
    return {
        "settings": {key: value for key, value in vars(options).items() if key not in ("json", "scratch", "child")},
        "tokens": tokens,
        "seconds_a_layer": report.seconds / options.layers,
        "cpu_seconds_a_layer": cpu / options.layers,
        "forward_seconds": [entry.forward_seconds for entry in report.layers],
        "solve_seconds": [entry.seconds for entry in report.layers],
        "write_states_seconds": written,
        "iterations": [entry.iterations for entry in report.layers],
        "preconditioner": [entry.preconditioner for entry in report.layers],
        "residual": [entry.residual for entry in report.layers],
        "before_gb": before / 1e9,
        "peak_gb": peak / 1e9,
        "kernel_peak_gb": kernel_peak / 1e9,
        "features_gb": features / 1e9,
        "layer_gb": layer / 1e9,
        "beyond_features_and_layer": peak / (features + layer) - 1,
        "phases_gb": {name: (most - anonymous) / 1e9 for name, most in phases.most.items()},
        "projection_seconds": {str(count): report.seconds / options.layers * count * samples for count in (16, 48)},
        "projection_cpu_seconds": {str(count): cpu / options.layers * count * samples for count in (16, 48)},
    }


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    print(
        f"{settings['layers']} layers, d {settings['hidden']}, {settings['experts']} experts, "
        f"{result['tokens']} tokens, {settings['threads']} thread(s)\n"
        f"a layer: {result['cpu_seconds_a_layer']:.0f} CPU s, {result['seconds_a_layer']:.0f} s on the clock"
    )
    for number, forward in enumerate(result["forward_seconds"]):
        solve, residual = result["solve_seconds"][number], result["residual"][number]
        how = f"{result['iterations'][number]} iterations, {result['preconditioner'][number]}, residual {residual:.1e}"
        print(f"  layer {number}: forward {forward:.0f} s, solve {solve:.0f} s ({how})")
    print(f"  writing the hidden states of all tokens, to resume from: {result['write_states_seconds']:.1f} s")
    print(
        f"peak memory {result['peak_gb']:.2f} GB: features {result['features_gb']:.2f}, one layer's weights "
        f"{result['layer_gb']:.2f}, beyond them {100 * result['beyond_features_and_layer']:+.0f} % of both "
        f"(with mapped files {result['kernel_peak_gb']:.2f} GB)"
    )
    for name, most in result["phases_gb"].items():
        print(f"  {name}: {most:.2f} GB")
    for count, seconds in result["projection_cpu_seconds"].items():
        print(f"PROJECTION to {count} layers, {REAL_SAMPLES} samples a domain: {seconds / 3600:.0f} CPU hours")


def make_models(folder: Path, options: argparse.Namespace) -> None:
    from transformers import OlmoeConfig, OlmoeForCausalLM
    from transformers.utils import logging

    import harc

    logging.disable_progress_bar()
    config = OlmoeConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=options.experts,
        num_experts_per_tok=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = OlmoeForCausalLM(config).to(getattr(torch, options.dtype))
    routers = [router.weight for router in harc.find_routers(model).values()]
    for weight in routers:
        weight.data.normal_(std=2 / options.hidden**0.5)
    merged = [weight.data.clone() for weight in routers]
    for name, noise in (("merged", 0.0), *((source, 0.2) for source in SOURCES)):
        for weight, kept in zip(routers, merged, strict=True):
            weight.data = kept + noise * kept.std() * torch.randn(kept.shape).to(kept.dtype)
        model.save_pretrained(folder / name)


class Phases:
    """The most anonymous memory of each phase of a calibration; phases are told by what the calibration calls."""

    def __enter__(self) -> "Phases":
        from harc.models.streaming import LayerStream

        module = import_module("harc.calibration.driver")
        loaded, fit = LayerStream.loaded, module.fit_router

        def phase_of_loaded(stream: Any, layer: int | None, part: str = "layer") -> Any:
            self.phase = "embeddings" if layer is None else {"layer": "whole layer"}.get(part, part)
            return loaded(stream, layer, part)

        def phase_of_fit(*args: Any, **options: Any) -> Any:
            self.phase = "solve"
            return fit(*args, **options)

        LayerStream.loaded, module.fit_router = phase_of_loaded, phase_of_fit  # type: ignore[method-assign]
        self.phase, self.most = "start", {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            phase = self.phase
            self.most[phase] = max(self.most.get(phase, 0), resident("RssAnon"))


def resident(which: str) -> int:
    """VmRSS or RssAnon (now) or VmHWM (the most so far) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status: it needs Linux")


if __name__ == "__main__":
    main()
