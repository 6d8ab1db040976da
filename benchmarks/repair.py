"""What the repair of one layer's experts takes at OLMoE's width: hidden size 2048, 64 experts of 1024, two domains.

    python benchmarks/repair.py [--experts N] [--tokens T] [--threads N] [--json FILE]

Gate and up, then down, of N experts, each on T tokens per domain, by the code that repairs a model: sums over the
tokens and the solve, both with a given λ and with λ chosen on held-out tokens (one in five). Experts are repaired one
after the other, so a layer takes 64 / N times what is measured. Seconds are of CPU, which hold on a busy machine too.
The bytes are those of the sums and factors of one expert, and of what all 64 would take at once.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from harc.calibration.report import peak_memory_gb
from harc.repairing.experts import calling
from harc.repairing.maps import Expert
from harc.repairing.observed import Observed, compare, fit_maps
from harc.repairing.settings import Ridge

HIDDEN, INNER, EXPERTS = 2048, 1024, 64
RIDGES: tuple[Ridge, ...] = (0.03, "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096, help="per expert and domain")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"threads": options.threads, "tokens": options.tokens, "load": load, "rows": []}
    print(f"{options.experts} experts, {options.tokens} tokens per expert and domain, load {load:.1f}")
    print("λ | gate and up, down: CPU s per expert | CPU s per layer of 64 | GB beyond weights and tokens")
    models = [experts_of(seed, options.experts) for seed in range(3)]
    for ridge in RIDGES:
        row = measure(models, ridge, options)
        result["rows"].append(row)
        print(
            f"{ridge} | {row['first']:.2f}, {row['second']:.2f} | {row['layer']:.0f} | {row['peak_gb']:.2f}", flush=True
        )
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    sums = {"first": 8 * (HIDDEN**2 + 2 * INNER * HIDDEN), "second": 8 * (INNER**2 + HIDDEN * INNER)}
    result["bytes"] = {**sums, "all_experts": EXPERTS * sum(sums.values())}
    print(
        f"float64 sums of one expert: {sums['first'] / 1e6:.0f} MB for gate and up, {sums['second'] / 1e6:.0f} MB for "
        f"down; of all {EXPERTS} at once they would be {result['bytes']['all_experts'] / 1e9:.1f} GB"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def experts_of(seed: int, count: int) -> nn.Module:
    """A layer's experts, near to those of other seeds."""
    config = AutoConfig.for_model("olmoe", hidden_size=HIDDEN, intermediate_size=INNER, num_experts=count)
    experts = OlmoeExperts(config).requires_grad_(False)
    for parameter in experts.parameters():
        torch.manual_seed(0)
        parameter.normal_(std=0.02)
        torch.manual_seed(1 + seed)
        parameter.add_(torch.randn_like(parameter), alpha=0.005)
    return experts


def measure(models: list[nn.Module], ridge: Ridge, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per expert of both maps, and the memory that came on top."""
    merged, *sources = models
    x = torch.randn(len(sources), options.tokens, HIDDEN)
    drifted = x + 0.1 * torch.randn_like(x)
    before = psutil.Process().memory_info().rss
    seconds = {"first": 0.0, "second": 0.0}
    for index in range(options.experts):
        pairs = [Expert(experts, index) for experts in (merged, *sources)]
        for key in seconds:
            began = time.process_time()
            fit_maps({key: pairs[0].linear(key)}, observed(key, pairs, drifted, x, ridge), {key: torch.float32}, ridge)
            seconds[key] += time.process_time() - began
    each = {key: value / options.experts for key, value in seconds.items()}
    return {
        "ridge": ridge,
        **each,
        "layer": EXPERTS * sum(each.values()),
        "peak_gb": peak_memory_gb() - before / 1e9,
    }


def observed(
    key: str, pairs: list[Expert], x_merged: torch.Tensor, x_source: torch.Tensor, ridge: Ridge
) -> Iterator[Observed]:
    """An expert's tokens, one in five of them held out where λ is chosen."""
    merged, *sources = pairs
    for domain, source in enumerate(sources):
        for tokens in torch.arange(x_merged.shape[1]).split(4096):
            sides = [
                ({key: side.linear(key)}, calling(side, x[domain, tokens]))
                for side, x in ((merged, x_merged), (source, x_source))
            ]
            held = tokens % 5 == 0 if ridge == "auto" else torch.zeros(len(tokens), dtype=torch.bool)
            yield compare(sides, lambda value: value, torch.full((len(tokens),), 1 / len(tokens)), held)


if __name__ == "__main__":
    main()
