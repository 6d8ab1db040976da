"""What each merging method costs, as ratios to weight averaging, on checkpoints of your own; and one layer's experts.

    python benchmarks/merge_costs.py --base BASE --sources SOURCE SOURCE [--methods tsv karcher …] [--json FILE]
    python benchmarks/merge_costs.py --matrices 2 --rows 2048 --columns 1024 [--experts 64] [--json FILE]

The first merges the checkpoints by every registered method, each in a process of its own, best of `--repeats`: CPU
seconds, and private memory beyond the loaded interpreter, mapped files left out. Methods that run the sources read 32
sequences of 64 random tokens each. docs/merge.md shows the ratios of benchmarks/merge_costs.json.

The second times the methods that work on singular values on so many random matrices, on one thread, and gives the time
of a layer's experts in proportion: each matrix is a problem of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from merge import PrivateMemory, prepare_harc, private_bytes

SPECTRAL = ("tsv", "iso_c", "iso_cts", "optmerge", "wudi")


def main() -> None:
    options = parse()
    if options.matrices:
        layer(options)
    else:
        checkpoints(options)


def keep(file: Path | None, name: str, result: dict[str, Any]) -> None:
    """Adds a result to the file; what else is in it stays."""
    if file:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known[name] = {**known.get(name, {}), **result}
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def checkpoints(options: argparse.Namespace) -> None:
    """Measures every method on the checkpoints, and keeps each when it is done, with its ratios to averaging."""
    from harc.merging import METHODS

    names = list(dict.fromkeys(["average", *(options.methods or METHODS)]))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="merge-costs-", dir=options.scratch) as scratch:
        for name in names:
            jobs = [
                {
                    "tool": "harc", "method": name, "settings": {}, "data": True, "base": str(options.base),
                    "sources": [str(source) for source in options.sources], "out": f"{scratch}/{name}-{repeat}",
                }
                for repeat in range(options.repeats)
            ]  # fmt: skip
            runs = [forked(job) for job in jobs]
            best = {key: min(run[key] for run in runs) for key in runs[0]}
            first = found.setdefault(name, best) and found["average"]
            best |= {f"{key}_ratio": best[key] / first[key] for key in runs[0]}
            sys.stdout.write(
                f"{name:16} {best['cpu_seconds']:8.2f} CPU s {best['cpu_seconds_ratio']:7.1f} ×"
                f" {best['memory_gb']:7.3f} GB {best['memory_gb_ratio']:5.2f} ×\n"
            )
            sys.stdout.flush()
            keep(options.json, "checkpoints", {name: best})


def forked(job: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of a merge, and the memory it took beyond the loaded interpreter, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:  # forked, so that nothing is imported again
        return pool.submit(measure, job).result()


def measure(job: dict[str, Any]) -> dict[str, float]:
    merge = prepare_harc(job, Path(job["base"]), [Path(source) for source in job["sources"]], job["out"])
    before = private_bytes()
    with PrivateMemory() as memory:
        start = time.process_time()
        merge()
        seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "memory_gb": (memory.peak - before) / 1e9}


def layer(options: argparse.Namespace) -> None:
    """Times the spectral methods on a few matrices; keeps the CPU seconds for all experts of a layer, by method."""
    import torch

    from harc.merging import METHODS

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (options.matrices, options.rows, options.columns)
    base = torch.randn(shape, generator=generator)
    sources = [base + 1e-3 * torch.randn(shape, generator=generator) for _ in range(2)]
    sizes = {name: getattr(options, name) for name in ("experts", "rows", "columns", "matrices")}
    for name in options.methods or SPECTRAL:
        found = METHODS[name]
        start = time.process_time()
        found.function(base, sources, [0.5, 0.5], found.settings())
        seconds = (time.process_time() - start) * options.experts / options.matrices
        keep(options.json, "layer", {name: {**sizes, "seconds": seconds}})
        sys.stdout.write(
            f"{name:10} {seconds:8.0f} CPU s for {options.experts} experts of {options.rows} × {options.columns}"
            f", measured on {options.matrices}\n"
        )
        sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="the model that the sources were tuned from")
    parser.add_argument("--sources", type=Path, nargs="+", help="checkpoints to merge")
    parser.add_argument("--methods", nargs="+", help="all, unless given")
    parser.add_argument("--repeats", type=int, default=1, help="the best of this many is kept")
    parser.add_argument("--matrices", type=int, default=0, help="time this many random matrices instead of checkpoints")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=64, help="matrices of a layer that the time is given for")
    parser.add_argument("--scratch", type=Path, help="where the merges are written")
    parser.add_argument("--json", type=Path, help="file for the results; what else is in it stays")
    options = parser.parse_args()
    if not options.matrices and not (options.base and options.sources):
        parser.error("give --base and --sources, or --matrices")
    return options


if __name__ == "__main__":
    main()
