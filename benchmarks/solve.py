"""The published solver against ours on the same problems, to the same true fp32 residual.

    python benchmarks/solve.py [--features DIR] [--cases real|synthetic|all] [--full] [--threads N] [--json FILE]

`published` (benchmarks/published.py) runs to its own stopping rule; without --full it is cut after a number of products
and its time is projected from the time of those (marked ~) to `--published-iterations`. Times are CPU seconds of one
process as well as wall seconds: ratios of CPU time hold on a busy machine too. The product's rate is measured against a
square matrix product of the same dtype in the same run.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import torch
from safetensors.torch import load_file
from torch import Tensor

from harc.operator import PrecisionOperator
from harc.solver import solve_router

Case = tuple[list[Tensor], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--features",
        type=Path,
        default=os.environ.get("HARC_FEATURES"),
        help="folder of the real cases, smollm2_layer{2,15}.safetensors (default: the variable HARC_FEATURES)",
    )
    parser.add_argument("--cases", choices=["real", "synthetic", "all"], default="all")
    parser.add_argument("--full", action="store_true", help="run the published solver to its end")
    parser.add_argument("--probe", type=int, default=5, help="its iterations when not run to the end")
    parser.add_argument("--published-iterations", type=int, default=613, help="projected to, when not run to the end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="synthetic problems of a size for a quick look")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.cases != "synthetic" and not (options.features and options.features.is_dir()):
        if options.cases == "real":
            parser.error(f"the real cases need --features or HARC_FEATURES; found {options.features}")
        print(f"the real cases are left out: no folder of features ({options.features})")
        options.cases = "synthetic"
    torch.set_num_threads(options.threads)
    rate = matmul_rate()
    print(f"fp32 matrix product: {rate / 1e9:.0f} GFLOP per CPU second, {options.threads} thread(s)")
    print("case, tokens, d, E | published: iterations, CPU s, residual | ours: the same | ratio, product's rate")
    rows = []
    for name, make in cases(options):
        row = measure(name, *make(), options, rate)
        rows.append(row)
        show(row)
        if options.json:
            options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1) + "\n")


def cases(options: argparse.Namespace) -> list[tuple[str, Callable[[], Case]]]:
    found: list[tuple[str, Callable[[], Case]]] = []
    if options.cases != "synthetic":
        for layer in (2, 15):
            for kind in ("sharp", "soft"):
                file = options.features / f"smollm2_layer{layer}.safetensors"
                found.append((f"real layer {layer} {kind}", lambda file=file, kind=kind: real(file, kind)))
    if options.cases != "real":
        sizes = [(2000, 256, 64)] if options.small else [(20000, 512, 64), (20000, 2048, 64), (20000, 2048, 128)]
        for tokens, hidden, experts in sizes:
            name = f"synthetic d {hidden} E {experts}"
            found.append((name, lambda t=tokens, d=hidden, e=experts: synthetic(t, d, e)))
    return found


def real(file: Path, kind: str) -> Case:
    tensors = load_file(file)
    domains = ("math", "code")
    return (
        [tensors[f"features.{domain}"] for domain in domains],
        [tensors[f"router_{kind}.{domain}"].float() for domain in domains],
    )


def synthetic(tokens: int, hidden: int, experts: int, seed: int = 0) -> Case:
    """Two domains of bf16 features with a power-law spectrum in a random basis, a mean, and unit mean square."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0]
    spectrum = torch.arange(1, hidden + 1).float() ** -0.5
    mean = 0.5 * torch.randn(hidden, generator=generator)
    features = []
    for _ in range(2):
        x = (torch.randn(tokens, hidden, generator=generator) * spectrum) @ basis.T
        x = x * (hidden / x.square().sum(1).mean()).sqrt() + mean
        features.append((x / x.square().mean().sqrt()).bfloat16())
    shared = torch.randn(experts, hidden, generator=generator) * 2 / hidden**0.5
    routers = [shared + 0.2 * torch.randn(experts, hidden, generator=generator) * 2 / hidden**0.5 for _ in range(2)]
    return features, routers


def measure(
    name: str, features: list[Tensor], routers: list[Tensor], options: argparse.Namespace, rate: float
) -> dict[str, Any]:
    start = torch.stack(routers).mean(0)
    tokens, (experts, hidden) = sum(len(x) for x in features), start.shape
    limit = 1000 if options.full else options.probe
    (weight, iterations, believed), cpu, wall = timed(lambda: published.solve(features, routers, start, max_iter=limit))
    finished = iterations < limit or options.full
    scale = 1.0 if finished else options.published_iterations / iterations
    solution, our_cpu, our_wall = timed(lambda: solve_router(features, routers, init=start, dtype=torch.float32))
    operator = PrecisionOperator(features, routers, dtype=torch.float32)
    v = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    _, product_cpu, _ = min((timed(lambda: operator.product(v)) for _ in range(3)), key=lambda item: item[1])
    true = float(operator.residual(weight.double()).norm() / operator.rhs.norm())
    return {
        "case": name,
        "tokens": tokens,
        "hidden": hidden,
        "experts": experts,
        "published": {
            "projected": not finished,
            "iterations": iterations if finished else options.published_iterations,
            "cpu_s": cpu * scale,
            "wall_s": wall * scale,
            "believed_residual": believed,
            "true_residual": true,
        },
        "ours": {
            "iterations": solution.iterations,
            "cpu_s": our_cpu,
            "wall_s": our_wall,
            "setup_s": solution.setup_seconds,
            "true_residual": solution.residual,
            "preconditioner": solution.preconditioner,
        },
        "ratio_cpu": cpu * scale / our_cpu,
        "ratio_wall": wall * scale / our_wall,
        "product_cpu_s": product_cpu,
        "product_rate_share": 4 * tokens * experts * hidden / product_cpu / rate,
        "features_bytes": sum(x.numel() * x.element_size() for x in features),
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    value = call()
    return value, time.process_time() - cpu, time.perf_counter() - wall


def matmul_rate(size: int = 1536) -> float:
    """Operations a CPU second of a square fp32 product, the best of three."""
    a = torch.randn(size, size)
    a @ a
    return 2 * size**3 / min(timed(lambda: a @ a)[1] for _ in range(3))


def show(row: dict[str, Any]) -> None:
    theirs, ours = row["published"], row["ours"]
    mark = "~" if theirs["projected"] else ""
    print(
        f"{row['case']:24} {row['tokens']:6} {row['hidden']:5} {row['experts']:4} | "
        f"{mark}{theirs['iterations']:5} {mark}{theirs['cpu_s']:7.1f} {theirs['true_residual']:.1e} | "
        f"{ours['iterations']:4} {ours['cpu_s']:6.2f} {ours['true_residual']:.1e} {ours['preconditioner']:7} | "
        f"{mark}{row['ratio_cpu']:5.1f}x, {row['product_rate_share']:.0%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
