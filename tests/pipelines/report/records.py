"""Records of every experiment as the pipeline writes them, drawn from a seeded model of problems.

`record` makes one cell; the functions below it make each experiment's cells. Numbers are of no model; shapes, names and
types are those of pipelines/cell.py.
"""

import copy
from typing import Any

import numpy as np

LABELS = {"average": "Weight Averaging", "ties": "TIES-Merging", "dare": "DARE", "wudi": "WUDI-Merging",
          "fisher": "Fisher Merging", "regmean": "RegMean", "individual": "Individual"}  # fmt: skip
BENCHMARKS = {
    "math": ["gsm8k", "math500"],
    "code": ["humaneval_plus", "mbpp_plus"],
    "chat": ["ifeval", "commonsense_qa"],
}
HARC = {"method": "harc", "alpha": 0.9, "beta": None, "hessian": "full", "layers": "all", "tol": 1e-6}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "harc": "0.1.0", "commit": "0123abc"}
EDGES = [round(0.02 * step, 2) for step in range(51)]


def record(
    experiment: str,
    merge: str,
    level: float,
    *,
    scale: str = "tiny",
    domains=("math", "code"),
    layers: int = 4,
    problems: int = 40,
    calibrate: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    seed: int = 0,
    **fields: Any,
) -> dict[str, Any]:
    """One finished cell. level: the mean share of right samples; calibrate: HARC's settings, where there is HARC."""
    rng = np.random.default_rng([seed, int(1000 * level), len(LABELS[merge]), layers])
    harc = calibrate is not None
    settings = {**HARC, **calibrate} if calibrate is not None else {"method": "none"}
    unmerged = merge == "individual"
    label = LABELS[merge]
    row = {"source": f"{label} with the source's routers", "merged": f"Sources with the routers of {label}"}.get(
        fields.get("swap"), label
    ) + " + SFT" * fields.get("sft", False)
    return {
        "experiment": experiment, "scale": scale, "row": {"method": row, "harc": "yes" if harc else "no"},
        "merge": merge, "calibrate": "harc" if harc else "none", "swap": None, "sft": False, "cost": None,
        "status": "ok", "error": None, "overrides": [f"merge={merge}"],
        "config": {
            "scale": {"name": scale, "size": {"parameters": 3.6e6, "layers": layers, "hidden": 128, "experts": 16}},
            "merge": {"method": merge, "label": label}, "calibrate": settings,
            "calibration_data": {"composition": "srccrt", "fraction": 1.0, "seed": 0, **(data or {})},
            "experiment": {"name": experiment}, "domains": list(domains), "seed": 0,
        },
        "versions": dict(VERSIONS),
        "tasks": tasks(rng, level, domains, problems),
        "routing": None if unmerged else routing(rng, domains, layers, 0.8 if harc else 1.0),
        "calibration": calibration(rng, layers) if harc else None,
        "runtime_s": None if unmerged else 3.5 + 12.0 * harc, "peak_memory_gb": None if unmerged else 1.25,
        "stages": [{"stage": "merge", "label": merge, "key": f"{merge}-key", "path": f"outputs/merge/{merge}-key",
                    "made": True, "seconds": 3.5, "peak_memory_gb": 1.25}],
        **fields,
    }  # fmt: skip


def tasks(rng, level: float, domains, problems: int) -> dict[str, Any]:
    """Counts of right samples, 16 a problem, on problems that are the same ones (as hard) in every cell."""
    found = {}
    for domain in domains:
        for column in BENCHMARKS[domain]:
            ease = np.random.default_rng(len(column)).normal(0, 0.3, problems)
            counts = rng.binomial(16, np.clip(level + ease, 0.01, 0.99))
            found[column] = {"task": f"tiny_{column}", "domain": domain, "accuracy": float(counts.mean() / 16),
                             "samples": 16, "ids": [f"{column}/{i}" for i in range(problems)],
                             "counts": counts.tolist()}  # fmt: skip
    return found


def routing(rng, domains, layers: int, factor: float) -> dict[str, Any]:
    """A diagnosis: KL that grows with depth, mismatch and shift that go with it."""
    depth = np.linspace(0.2, 1.0, layers)
    kl = {domain: factor * 0.06 * (1 + 0.3 * i) * depth**2 for i, domain in enumerate(domains)}
    report: dict[str, Any] = {
        "layers": list(range(layers)),
        "kl": {domain: values.tolist() for domain, values in kl.items()},
        "mismatch": {domain: (0.3 + 2 * values).tolist() for domain, values in kl.items()},
        "shift": {domain: (0.05 + 0.5 * values).tolist() for domain, values in kl.items()},
    }
    draws = {domain: np.clip(rng.gamma(2.0, 0.03, 4000), 0, 1) for domain in domains}
    report |= {f"{name}_mean": float(np.mean(list(report[name].values()))) for name in ("kl", "mismatch", "shift")}
    return report | {
        # Keys as JSON gives them back.
        "shift_quantiles": {d: {str(q): float(np.quantile(v, q)) for q in (0.5, 0.9, 0.99)} for d, v in draws.items()},
        "shift_below": {d: {str(limit): float((v < limit).mean()) for limit in (0.1, 0.2)} for d, v in draws.items()},
        "shift_histogram": {d: {"edges": EDGES, "shares": (np.histogram(v, EDGES)[0] / len(v)).tolist()}
                            for d, v in draws.items()},
        "any_mismatch": dict.fromkeys(domains, 0.91),
        "mismatches_per_token": {domain: float(np.sum(report["mismatch"][domain])) for domain in domains},
        "tokens": dict.fromkeys(domains, 1000),
    }  # fmt: skip


def calibration(rng, layers: int, iterations: int = 20) -> dict[str, Any]:
    """A calibrate report."""
    one = {"residual": 8e-7, "converged": True, "residuals": [1.0, 8e-7], "seconds": 1.5, "kl_before": 0.05,
           "kl_after": 0.04}  # fmt: skip
    rows = [{"layer": i, "iterations": iterations + int(rng.integers(5)), **one} for i in range(layers)]
    return {"layers": rows, "tokens": [1000, 1000], "seconds": 3.0 * layers, "peak_memory_gb": 1.2}


def failed(cell: dict[str, Any], error: str = "RuntimeError: out of memory") -> dict[str, Any]:
    """The record of the same cell had it raised."""
    known = ("experiment", "scale", "row", "merge", "calibrate", "swap", "sft", "overrides", "config", "versions")
    return {**{name: cell[name] for name in known}, "status": "failed", "error": error}


def cost(*seconds: float, memory: float = 1.0, device: float | None = None) -> list[dict[str, Any]]:
    """Repeats of a timed step; memory rises by a hundredth from one to the next."""
    return [
        {"seconds": one, "peak_memory_gb": memory + 0.01 * i, "device_memory_gb": device}
        for i, one in enumerate(seconds)
    ]


def table3(scale: str = "tiny") -> list[dict[str, Any]]:
    bare: dict[str, Any] = {"tasks": {}, "routing": None, "calibration": None}

    def cell(merge: str, repeats, calibrate=None) -> dict[str, Any]:
        made = record("table3", merge, 0.5, scale=scale, calibrate=calibrate)
        return {**made, **bare, "cost": {"calibrate" if calibrate is not None else "merge": repeats}}

    return [
        cell("average", cost(0.5, 0.6, 0.7)),
        cell("ties", cost(2.0, 2.2, 2.4)),
        cell("dare", cost(1.5, 1.6, 1.9, memory=1.2)),
        cell("regmean", cost(6.0, 6.5, 9.0, memory=2.0, device=3.5)),
        cell("ties", cost(14.0, 15.0, 16.0, memory=1.8), calibrate={}),
    ]


def table4(scale: str = "tiny", levels=(0.4, 0.45, 0.5, 0.6), layers: int = 4) -> list[dict[str, Any]]:
    cells = [record("table4", "wudi", levels[0], scale=scale, layers=layers)]
    for share, level, done in zip(("25%", "50%", "all"), levels[1:], (0.25, 0.5, 1.0), strict=True):
        cell = record("table4", "wudi", level, scale=scale, layers=layers, calibrate={"layers": share})
        kept = cell["calibration"]["layers"][-round(done * layers) :]
        cell["calibration"] = {**cell["calibration"], "layers": kept, "seconds": 3.0 * len(kept)}
        cells.append(cell)
    return cells


def merging(experiment: str, merges, domains=("math", "code"), scale: str = "tiny") -> list[dict[str, Any]]:
    """Individual, and each method without and with HARC; table 5's calibrated cells know two models' calibration."""
    cells = [record(experiment, "individual", 0.75, domains=domains, scale=scale)]
    for i, merge in enumerate(merges):
        cells.append(record(experiment, merge, 0.4 + 0.02 * i, domains=domains, scale=scale))
        cells.append(record(experiment, merge, 0.48 + 0.02 * i, domains=domains, scale=scale, calibrate={}))
        cells[-1]["calibration_two"] = calibration(np.random.default_rng(i), 4, iterations=40)
    return cells


def table7(scale: str = "tiny") -> list[dict[str, Any]]:
    cells = []
    for merge, level in (("wudi", 0.5), ("regmean", 0.45)):
        for sft, harc, gain, kl in ((False, False, 0, 0.05), (False, True, 0.04, 0.04), (True, False, 0.02, 0.07),
                                    (True, True, 0.1, 0.06)):  # fmt: skip
            cell = record("table7", merge, level + gain, scale=scale, calibrate={} if harc else None, sft=sft)
            cell["routing"]["kl_mean"] = kl
            cells.append(cell)
    return cells


def fig1(domains=("math", "code")) -> list[dict[str, Any]]:
    return [
        record("fig1", "individual", 0.75, domains=domains),
        record("fig1", "wudi", 0.5, domains=domains),
        record("fig1", "wudi", 0.56, domains=domains, calibrate={}),
        record("fig1", "wudi", 0.58, domains=domains, swap="source"),
        record("fig1", "wudi", 0.6, domains=domains, swap="merged"),
    ]


def fig3a() -> list[dict[str, Any]]:
    levels = {"identity": 0.45, "diagonal": 0.5, "full": 0.55}
    return [record("fig3a", "wudi", 0.4)] + [
        record("fig3a", "wudi", level, calibrate={"hessian": name}) for name, level in levels.items()
    ]


def fig3b() -> list[dict[str, Any]]:
    alphas = {0.1: 0.555, 0.3: 0.56, 0.5: 0.555, 0.7: 0.56, 0.9: 0.555, 1.0: 0.56}
    betas = {1e-3: 0.55, 1e-2: 0.55, 0.1: 0.54, 1.0: 0.35, 10.0: 0.3}
    cells = [record("fig3b", "wudi", 0.45)]
    cells += [record("fig3b", "wudi", level, calibrate={"alpha": value}) for value, level in alphas.items()]
    return cells + [record("fig3b", "wudi", level, calibrate={"beta": value}) for value, level in betas.items()]


def fig3c() -> list[dict[str, Any]]:
    levels = {"srccrt": 0.6, "srcall": 0.5, "gt": 0.52, "prompt": 0.57, "c4": 0.55}
    return [record("fig3c", "wudi", 0.4)] + [
        record("fig3c", "wudi", level, calibrate={}, data={"composition": name}) for name, level in levels.items()
    ]


def fig4a(experiment: str = "fig4a", layers: int = 4) -> list[dict[str, Any]]:
    return [record(experiment, "wudi", 0.5, layers=layers),
            record(experiment, "wudi", 0.55, layers=layers, calibrate={})]  # fmt: skip


def fig4b() -> list[dict[str, Any]]:
    cells = []
    for merge, level in (("regmean", 0.4), ("wudi", 0.45)):
        cells.append(record("fig4b", merge, level))
        for fraction in (0.1, 0.2, 0.4, 0.7, 1.0):
            for seed in (0, 1) if fraction < 1 else (0,):
                data = {"fraction": fraction, "seed": seed}
                gain = 0.04 if fraction < 0.4 else 0.08
                cells.append(record("fig4b", merge, level + gain, calibrate={}, data=data, seed=seed))
    return cells


def logit_shift() -> list[dict[str, Any]]:
    return [record("logit_shift", "ties", 0.5), record("logit_shift", "wudi", 0.5, seed=1)]


def grid() -> list[dict[str, Any]]:
    cells = []
    for merge, key, values in (("ties", "density", (0.1, 0.2, 0.4)), ("regmean", "damping", (0.7, 0.9))):
        for i, value in enumerate(values):
            cell = record("grid", merge, 0.4 + 0.05 * (i % 2))
            cell["config"]["merge"][key] = value
            cells.append(cell)
    return cells


def everything() -> dict[str, list[dict[str, Any]]]:
    """Cells of every experiment of the paper, and the grid."""
    six = ("average", "ties", "dare", "wudi", "fisher", "regmean")
    return {
        "table1": merging("table1", six), "table3": table3(), "table4": table4(),
        "table5": merging("table5", six, ("chat", "math", "code")), "table6": merging("table6", six[:5]),
        "table7": table7(), "fig1": fig1(), "fig3a": fig3a(), "fig3b": fig3b(), "fig3c": fig3c(), "fig4a": fig4a(),
        "fig4b": fig4b(), "logit_shift": logit_shift(), "mismatch": fig4a("mismatch"), "grid": grid(),
    }  # fmt: skip


def clone(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy that a test may change."""
    return copy.deepcopy(cells)
