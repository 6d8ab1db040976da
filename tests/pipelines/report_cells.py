"""Cells as the pipeline records them, drawn from a seeded model of problems, for the tests of reports and tracking."""

import json
from pathlib import Path
from typing import Any

import numpy as np

METHODS = {
    "Weight Averaging": ("average", 0.00, 1.0),
    "TIES-Merging": ("ties", -0.05, 1.9),
    "DARE": ("dare", 0.01, 1.6),
    "WUDI-Merging": ("wudi", 0.05, 0.7),
    "Fisher Merging": ("fisher", -0.02, 1.1),
    "RegMean": ("regmean", 0.03, 0.6),
}
COLUMNS = {"gsm8k": "math", "math500": "math", "humaneval_plus": "code", "mbpp_plus": "code"}
LEVELS = {"gsm8k": 0.62, "math500": 0.48, "humaneval_plus": 0.55, "mbpp_plus": 0.66}


def table1_cells(*, scale: str = "tiny", problems: int = 100, layers: int = 4, gain: float = 0.015, seed: int = 0):
    """The 13 cells of table 1: Individual, six merges without and with HARC."""
    rng = np.random.default_rng(seed)
    ease = {column: rng.normal(0, 0.35, problems) for column in COLUMNS}
    cells = [_cell(rng, scale, "Individual", "individual", 0.12, "no", ease, layers, None)]
    for method, (merge, level, kl) in METHODS.items():
        mine = {column: values + rng.normal(0, 0.15, problems) for column, values in ease.items()}
        cells.append(_cell(rng, scale, method, merge, level, "no", mine, layers, kl))
        near = {column: values + rng.normal(0, 0.03, problems) for column, values in mine.items()}
        cells.append(_cell(rng, scale, method, merge, level + gain * rng.uniform(0.2, 2), "yes", near, layers, kl))
    return cells


def _cell(rng, scale, method, merge, level, harc, ease, layers, kl) -> dict[str, Any]:
    tasks = {}
    for column, domain in COLUMNS.items():
        counts = rng.binomial(16, np.clip(LEVELS[column] + level + ease[column], 0.01, 0.99))
        tasks[column] = {
            "task": f"tiny_{column}" if scale == "tiny" else column,
            "domain": domain,
            "accuracy": float(counts.mean() / 16),
            "ci95": 0.04,
            "samples": 16,
            "ids": [f"{column}/{i}" for i in range(len(counts))],
            "counts": counts.tolist(),
        }
    calibrated = harc == "yes"
    seconds = {"average": 0.8, "ties": 1.9, "dare": 1.4, "wudi": 9.6, "fisher": 12.1, "regmean": 6.5}.get(merge)
    return {
        "experiment": "table1",
        "scale": scale,
        "status": "ok",
        "error": None,
        "row": {"method": method, "harc": harc},
        "merge": merge,
        "calibrate": "harc" if calibrated else "none",
        "overrides": [f"merge={merge}", f"calibrate={'harc' if calibrated else 'none'}"],
        "config": {
            "scale": {"name": scale, "finetune": {"learning_rate": 2e-5, "steps": 400}, "engine": {"name": "vllm"}},
            "merge": {"method": merge, "label": method},
            "calibrate": {"method": "harc", "alpha": 0.9, "tol": 1e-6} if calibrated else {"method": "none"},
            "evaluate": {"samples": 16, "temperature": 0.1, "seed": 0},
            "domains": ["math", "code"],
            "seed": 0,
        },
        "tasks": tasks,
        "routing": _routing(rng, layers, kl, calibrated),
        "calibration": _calibration(rng, layers) if calibrated else None,
        "runtime_s": None if seconds is None else seconds + (14.2 if calibrated else 0),
        "peak_memory_gb": None if seconds is None else 0.9 + 0.2 * calibrated,
        "stages": [
            {"stage": "world", "label": scale, "key": "0a1b2c3d", "path": f"outputs/world/{scale}-0a1b2c3d",
             "made": False, "seconds": 4.2, "peak_memory_gb": 0.3},
            {"stage": "merge", "label": merge, "key": f"{merge}-key", "path": f"outputs/merge/{merge}-key",
             "made": True, "seconds": seconds or 0.0, "peak_memory_gb": 0.9},
        ],
        "versions": {"torch": "2.13.0", "transformers": "5.19.0", "harc": "0.1.0"},
    }  # fmt: skip


def _routing(rng, layers, kl, calibrated) -> dict[str, Any] | None:
    if kl is None:
        return None
    depth = np.linspace(0.3, 1.0, layers) ** 2
    fall = rng.uniform(0.78, 0.95, layers) if calibrated else np.ones(layers)
    domains = {"math": 1.0, "code": 1.3}
    by_layer = {domain: 0.06 * kl * depth * fall * scale for domain, scale in domains.items()}
    measures = {
        "kl": by_layer,
        "mismatch": {domain: 0.25 + 0.3 * values / 0.1 for domain, values in by_layer.items()},
        "shift": {domain: 0.05 + 0.1 * values for domain, values in by_layer.items()},
    }
    routing: dict[str, Any] = {
        name: {domain: values.tolist() for domain, values in one.items()} for name, one in measures.items()
    }
    routing |= {f"{name}_mean": float(np.mean(list(one.values()))) for name, one in measures.items()}
    return routing


def _calibration(rng, layers) -> dict[str, Any]:
    rows = []
    for layer in range(layers):
        steps = int(rng.integers(20, 60))
        residuals = np.geomspace(1.0, 8e-7, steps).tolist()
        rows.append({"layer": layer, "iterations": steps, "residual": residuals[-1], "converged": True,
                     "residuals": residuals, "seconds": 1.5, "kl_before": 0.05 * (layer + 1),
                     "kl_after": 0.04 * (layer + 1)})  # fmt: skip
    return {"layers": rows}


def failed(cell: dict[str, Any], error: str) -> dict[str, Any]:
    """The record of the same cell had it raised."""
    known = ("experiment", "scale", "row", "merge", "calibrate", "overrides", "config", "versions")
    return {**{name: cell[name] for name in known}, "status": "failed", "error": error}


def write_cells(path: Path, cells: list[dict[str, Any]]) -> None:
    """Writes cells as the pipeline does: JSON, one a line."""
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
