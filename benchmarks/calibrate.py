"""Calibrating a random OLMoE of real width from a checkpoint on disk: time a layer and peak memory.

    python benchmarks/calibrate.py [--layers 2] [--hidden 2048] [--experts 64] [--tokens 20000] [--json FILE]

Peak memory is resident memory above what the process holds before the calibration, sampled; it is set beside the
features (hidden states and router inputs) and one layer's weights. Then a PROJECTION, not a measurement, to 16 and 48
layers and 7000 samples a domain, linear in tokens and layers.
"""

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

import harc
from harc.tokens import TokenSequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--width", type=int, default=1024, help="an expert's inner width")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20000, help="a domain")
    parser.add_argument("--length", type=int, default=500, help="tokens a sample")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="bench-calibrate-", dir=options.scratch) as scratch:
        result = measure(Path(scratch), options)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, options: argparse.Namespace) -> dict:
    paths = make_models(folder, options)
    generator = torch.Generator().manual_seed(0)
    count = options.tokens // options.length
    data = [
        [TokenSequence(torch.randint(3, 1000, (options.length,), generator=generator), 0) for _ in range(count)]
        for _ in range(2)
    ]
    cpu = time.process_time()
    with PeakMemory() as memory:
        report = harc.calibrate(paths[0], paths[1:], data, out=folder / "out", progress=False)
    cpu = time.process_time() - cpu
    tokens = sum(report.tokens)
    features = 2 * tokens * options.hidden * 2
    layer = 2 * (3 * options.experts * options.hidden * options.width + 4 * options.hidden**2)
    a_layer = report.seconds / options.layers
    samples = 2 * 7000 * options.length / tokens
    return {
        "settings": {key: value for key, value in vars(options).items() if key not in ("json", "scratch")},
        "tokens": tokens,
        "seconds_a_layer": a_layer,
        "cpu_seconds_a_layer": cpu / options.layers,
        "solve_seconds": [entry.seconds for entry in report.layers],
        "iterations": [entry.iterations for entry in report.layers],
        "preconditioner": [entry.preconditioner for entry in report.layers],
        "residual": [entry.residual for entry in report.layers],
        "peak_gb": memory.peak / 1e9,
        "features_gb": features / 1e9,
        "layer_gb": layer / 1e9,
        "beyond_features_and_layer": memory.peak / (features + layer) - 1,
        "projection_16_layers_7000_samples_s": a_layer * 16 * samples,
        "projection_48_layers_7000_samples_s": a_layer * 48 * samples,
    }


def make_models(folder: Path, options: argparse.Namespace) -> list[Path]:
    config = OlmoeConfig(
        vocab_size=1000,
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
    model = OlmoeForCausalLM(config).to(torch.bfloat16)
    paths = [folder / name for name in ("merged", "math", "code")]
    routers = [router.weight for router in harc.find_routers(model).values()]
    for weight in routers:
        weight.data.normal_(std=2 / options.hidden**0.5)
    merged = [weight.data.clone() for weight in routers]
    for path, noise in zip(paths, (0.0, 0.2, 0.2), strict=True):
        for weight, kept in zip(routers, merged, strict=True):
            weight.data = kept + noise * kept.std() * torch.randn(kept.shape).to(kept.dtype)
        model.save_pretrained(path)
    return paths


class PeakMemory:
    """The most resident memory above the start's, sampled every 20 ms, and by the kernel where it is higher."""

    def __enter__(self) -> "PeakMemory":
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._kernel = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._most = self._before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        kernel = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if kernel > self._kernel:  # the peak was inside the block
            self._most = max(self._most, kernel * 1024)
        self.peak = self._most - self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)


if __name__ == "__main__":
    main()
