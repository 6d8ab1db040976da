"""The published solver against ours on the same problems, ours to a true residual of 1e-6.

    python benchmarks/solve.py [--features DIR] [--cases real|synthetic|all] [--threads N] [--json FILE]

`published` (benchmarks/published.py) runs to its own stopping rule, or to its limit of 1000 iterations. In the cases
that take longer than five minutes its time is projected (marked ~): its iterations are counted with our faster product
in the same conjugate gradients, at most `--count` of them, and `--probe` iterations of its own are timed. Where the
count ends at that limit (marked >) time and ratio are lower bounds. Ours is always run in full, three times,
and its median counts: a solve of a second or two is at the mercy of what else runs. Times are
CPU seconds of one process as well as wall seconds: ratios of CPU time hold on a busy machine too. The product's rate is
measured against a square fp32 matrix product in the same run. A last line compares with a dense float64 solve at a size
where there is one.

`--targets` solves the same problems for target logits that the features determine in part only, as
`calibrate.target=source_inputs` does: each source's router on inputs moved by `--drift` of their size, token by token.
The published solver knows none; its column is then left out.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import published
import torch
from safetensors.torch import load_file
from torch import Tensor

from harc.solver.newton import mean_kl
from harc.solver.operator import PrecisionOperator
from harc.solver.settings import PreconditionerName
from harc.solver.solve import solve_router

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
    parser.add_argument("--probe", type=int, default=10, help="its iterations timed where its time is projected")
    parser.add_argument("--count", type=int, default=1000, help="its iterations counted at most where it is projected")
    parser.add_argument("--targets", action="store_true", help="ours alone, on target logits of moved inputs")
    parser.add_argument("--drift", type=float, default=0.3, help="how far inputs move for --targets, of their size")
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
    result: dict[str, Any] = {"threads": options.threads, "load": os.getloadavg()[0], "rows": []}
    rate = 0.0
    if options.targets:
        print(f"load {result['load']:.1f}")
        print(
            "case, tokens, d, E | W_i x: iterations, CPU s, residual | targets: the same | share of the KL that is left"
        )
    else:
        rate, half = matmul_rate(torch.float32), matmul_rate(torch.bfloat16)
        result |= {"fp32_rate": rate, "bf16_rate": half}
        print(
            f"matrix product, GFLOP per CPU second: fp32 {rate / 1e9:.0f}, bf16 {half / 1e9:.0f}; "
            f"load {result['load']:.1f}"
        )
        print("case, tokens, d, E | published: iterations, CPU s, residual | ours: the same | ratio, product's rate")
    for name, make, whole in cases(options):
        row = (
            measure_targets(name, *make(), options) if options.targets else measure(name, *make(), options, rate, whole)
        )
        result["rows"].append(row)
        (show_targets if options.targets else show)(row)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    result["dense_error"] = dense_error()
    print(f"largest relative error against the dense float64 solve, every preconditioner: {result['dense_error']:.1e}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def cases(options: argparse.Namespace) -> list[tuple[str, Callable[[], Case], bool]]:
    """Name, problem, and whether the published solver is run to its end."""
    found: list[tuple[str, Callable[[], Case], bool]] = []
    if options.cases != "synthetic":
        for layer in (2, 15):
            for kind in ("sharp", "soft"):
                file = options.features / f"smollm2_layer{layer}.safetensors"
                found.append((f"real layer {layer} {kind}", lambda file=file, kind=kind: real(file, kind), True))
    if options.cases != "real":
        sizes = [(20000, 512, 64, True), (20000, 2048, 64, False), (5000, 2048, 128, False)]
        if options.small:
            sizes = [(2000, 256, 64, True)]
        for tokens, hidden, experts, whole in sizes:
            name = f"synthetic d {hidden} E {experts}"
            found.append((name, lambda t=tokens, d=hidden, e=experts: synthetic(t, d, e), whole))
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
    name: str, features: list[Tensor], routers: list[Tensor], options: argparse.Namespace, rate: float, whole: bool
) -> dict[str, Any]:
    start = torch.stack(routers).mean(0)
    tokens, (experts, hidden) = sum(len(x) for x in features), start.shape
    runs = [timed(lambda: solve_router(features, routers, init=start, dtype=torch.float32)) for _ in range(3)]
    solution, our_cpu, our_wall = sorted(runs, key=lambda run: run[1])[1]
    operator = PrecisionOperator(features, routers, dtype=torch.float32)
    v = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    _, product_cpu, _ = min((timed(lambda: operator.product(v)) for _ in range(5)), key=lambda item: item[1])
    limit = 1000 if whole else options.probe
    (weight, iterations, believed), cpu, wall = timed(lambda: published.solve(features, routers, start, max_iter=limit))
    scale = 1.0
    if not whole:
        weight, counted, believed = published.solve(
            features, routers, start, max_iter=options.count, apply=operator.product
        )
        scale, iterations = counted / iterations, counted
    true = float(operator.residual(weight.double()).norm() / operator.rhs.norm())
    return {
        "case": name,
        "tokens": tokens,
        "hidden": hidden,
        "experts": experts,
        "published": {
            "projected": not whole,
            "lower_bound": not whole and iterations == options.count,
            "iterations": iterations,
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
        "features_fp32_bytes": 4 * tokens * hidden,
    }


def measure_targets(
    name: str, features: list[Tensor], routers: list[Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """The solve of the routers' own logits beside that of target logits, and what it makes of their routing KL."""
    start = torch.stack(routers).mean(0)
    targets = moved_logits(features, routers, options.drift)
    row: dict[str, Any] = {"case": name, "tokens": sum(map(len, features)), "shape": list(start.shape)}
    for key, asked in (("own", None), ("targets", targets)):
        runs = [
            timed(lambda z=asked: solve_router(features, routers, z, init=start, dtype=torch.float32)) for _ in "123"
        ]
        solution, cpu, wall = sorted(runs, key=lambda run: run[1])[1]
        row[key] = {
            "iterations": solution.iterations,
            "cpu_s": cpu,
            "wall_s": wall,
            "true_residual": solution.residual,
            "preconditioner": solution.preconditioner,
        }
    before, after = (mean_kl(features, routers, w, targets=targets) for w in (start, solution.weight))
    return {**row, "kl_before": before, "kl_after": after}


def moved_logits(features: list[Tensor], routers: list[Tensor], drift: float, seed: int = 1) -> list[Tensor]:
    """Each router's logits on its domain's features, moved token by token by noise of their spread times `drift`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for x, router in zip(features, routers, strict=True):
        noise = torch.randn(x.shape, generator=generator) * x.float().std(0)
        found.append((x.float() + drift * noise) @ router.T)
    return found


def show_targets(row: dict[str, Any]) -> None:
    columns = [
        f"{one['iterations']:4} {one['cpu_s']:6.2f} {one['true_residual']:.1e} {one['preconditioner']:7}"
        for one in (row["own"], row["targets"])
    ]
    print(
        f"{row['case']:24} {row['tokens']:6} {row['shape'][1]:5} {row['shape'][0]:4} | {' | '.join(columns)} | "
        f"{row['kl_after'] / row['kl_before']:.0%}",
        flush=True,
    )


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    value = call()
    return value, time.process_time() - cpu, time.perf_counter() - wall


def matmul_rate(dtype: torch.dtype, size: int = 1536) -> float:
    """Operations a CPU second of a square product, the best of five."""
    a = torch.randn(size, size).to(dtype)
    a @ a
    return 2 * size**3 / min(timed(lambda: a @ a)[1] for _ in range(5))


def dense_error() -> float:
    """The largest relative error of ours at the default tolerance in fp32, over preconditioners, d 32 and E 8."""
    features, routers = synthetic(1000, 32, 8)
    start = torch.stack(routers).mean(0)
    dense = published.dense_solution(features, routers, start)
    names = [name for name in get_args(PreconditionerName) if name != "auto"]
    solved = [solve_router(features, routers, init=start, dtype=torch.float32, preconditioner=name) for name in names]
    return max(float((one.weight - dense).norm() / dense.norm()) for one in solved)


def show(row: dict[str, Any]) -> None:
    theirs, ours = row["published"], row["ours"]
    mark = ">" if theirs["lower_bound"] else "~" if theirs["projected"] else ""
    print(
        f"{row['case']:24} {row['tokens']:6} {row['hidden']:5} {row['experts']:4} | "
        f"{mark}{theirs['iterations']:5} {mark}{theirs['cpu_s']:7.1f} {theirs['true_residual']:.1e} | "
        f"{ours['iterations']:4} {ours['cpu_s']:6.2f} {ours['true_residual']:.1e} {ours['preconditioner']:7} | "
        f"{mark}{row['ratio_cpu']:5.1f}x, {row['product_rate_share']:.0%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
