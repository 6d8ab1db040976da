"""`+experiment=appendix_c1`: how the cost of a product Λ̃ V grows with tokens, hidden size and experts.

The paper claims O(T E d) operations a product and O(T d + E d) memory (METHOD section 4). One size varies at a time,
over a factor of eight; the exponent is the slope of a least-squares line in log cost against log size. Random features
and routers: the cost of a product does not depend on their values.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from harc.solver.operator import PrecisionOperator
from pipelines.config import Config
from pipelines.console import default_console
from pipelines.report.build import write_folder

log = logging.getLogger(__name__)

BASE = {"tokens": 4000, "hidden": 512, "experts": 64}
FACTORS = (0.5, 1, 2, 4)
CLAIMED = {"tokens": "1", "hidden": "1", "experts": "1"}  # exponents of a product's operations
_REPEATS = 3
_HEADER = ("varied", "tokens", "hidden", "experts", "CPU s a product", "MB kept")


@dataclass(frozen=True)
class Cost:
    """One product's cost. sizes: of one domain; seconds: CPU time, least of three; megabytes: all that is kept."""

    varied: str
    sizes: dict[str, int]
    seconds: float
    megabytes: float


def measure_complexity(config: Config) -> int:
    """Measures, prints, and writes the page to reports/appendix_c1 of the outputs folder; 0."""
    costs = [measured(name, sizes) for name in BASE for sizes in sizes_of(name, BASE)]
    time_slopes = {name: exponent_of(costs, name, "seconds") for name in BASE}
    memory_slopes = {name: exponent_of(costs, name, "megabytes") for name in BASE}
    table = Table(title="Cost of a product with the precision matrix")
    for column in _HEADER:
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(*_cells(cost))
    said = [
        f"{name}: time grows with exponent {time_slopes[name]:.2f} (claimed {CLAIMED[name]}), memory with "
        f"{memory_slopes[name]:.2f}."
        for name in BASE
    ]
    said.append(
        f"{torch.get_num_threads()} threads. Kept are features, probabilities and sums: T d + T E + E d values; the "
        "published solver computes probabilities again at each product, T d + E d."
    )
    console = default_console()
    console.print(table)
    for line in said:
        console.print(line)
    lines = ["# Appendix C.1: Measured cost and claimed complexity", "", *said, ""]
    lines += [f"| {' | '.join(_HEADER)} |", f"|{' --- |' * len(_HEADER)}"]
    lines += [f"| {' | '.join(_cells(cost))} |" for cost in costs]
    folder = Path(config.outputs) / "reports" / "appendix_c1"
    write_folder(folder, {"table.md": "\n".join(lines) + "\n"})
    log.info("the page: %s", folder / "table.md")
    return 0


def sizes_of(name: str, base: Mapping[str, int]) -> list[dict[str, int]]:
    """The base with one of its sizes varied."""
    return [{**base, name: round(factor * base[name])} for factor in FACTORS]


def measured(name: str, sizes: dict[str, int]) -> Cost:
    """The cost of a product of these sizes, in fp32, with one domain."""
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(sizes["tokens"], sizes["hidden"], generator=draws)
    router = torch.randn(sizes["experts"], sizes["hidden"], generator=draws) / math.sqrt(sizes["hidden"])
    operator = PrecisionOperator([features], [router], dtype=torch.float32)
    v = torch.randn(operator.shape, generator=draws)
    times = []
    for _ in range(_REPEATS):
        began = time.process_time()
        operator.product(v)
        times.append(time.process_time() - began)
    (domain,) = operator.domains
    kept = [value for value in (*vars(domain).values(), operator.diagonal, operator.rhs) if torch.is_tensor(value)]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in kept}
    return Cost(name, sizes, min(times), sum(storages.values()) / 1e6)


def exponent_of(costs: Sequence[Cost], name: str, what: str) -> float:
    """The exponent with which a cost, `seconds` or `megabytes`, grows with the size that is varied."""
    rows = [cost for cost in costs if cost.varied == name]
    return exponent([row.sizes[name] for row in rows], [getattr(row, what) for row in rows])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the least-squares line in log cost against log size."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def _cells(cost: Cost) -> list[str]:
    return [cost.varied, *(str(size) for size in cost.sizes.values()), f"{cost.seconds:.4f}", f"{cost.megabytes:.1f}"]
