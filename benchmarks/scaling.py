"""How the solve's cost grows: CPU time against tokens, hidden size and experts, with fitted exponents.

    python benchmarks/scaling.py [--threads N] [--json FILE]

One quantity varies at a time. The exponent is the slope of a least-squares line in log time against log size, of the
product and of the whole solve. Layers are calibrated one after the other: time is proportional to their number.
"""

import argparse
import json
from pathlib import Path

import torch
from solve import synthetic, timed

from harc.solver.operator import PrecisionOperator
from harc.solver.solve import solve_router
from pipelines.tools.complexity_page import exponent

BASE = {"tokens": 4000, "hidden": 256, "experts": 32}
SWEEPS = {"tokens": [2000, 4000, 8000, 16000], "hidden": [128, 256, 512, 1024], "experts": [16, 32, 64, 128]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {}
    for name, values in SWEEPS.items():
        rows = []
        for value in values:
            features, routers = synthetic(**{**BASE, name: value})
            operator = PrecisionOperator(features, routers, dtype=torch.float32)
            v = torch.randn(operator.shape)
            product = min(timed(lambda operator=operator, v=v: operator.product(v))[1] for _ in range(3))
            solution, cpu, _ = timed(lambda x=features, w=routers: solve_router(x, w, dtype=torch.float32))
            rows.append({name: value, "product_s": product, "solve_s": cpu, "iterations": solution.iterations})
            print(f"{name} {value:6}: product {product:.4f} s, solve {cpu:.2f} s, {solution.iterations} iterations")
        slopes = {part: exponent(values, [row[part] for row in rows]) for part in ("product_s", "solve_s")}
        print(f"{name}: time grows with exponent {slopes['product_s']:.2f} (product), {slopes['solve_s']:.2f} (solve)")
        result[name] = {"rows": rows, "exponents": slopes}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
