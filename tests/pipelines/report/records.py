"""Records of every experiment's cells, made from their types and drawn from a seeded model of problems.

`record` makes one cell; the functions below it make each experiment's cells. Numbers are of no model.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from pipelines.places import CONF
from pipelines.record import (
    CalibrationResult,
    CellRecord,
    Histogram,
    LayerResult,
    Repetition,
    RoutingResult,
    RowLabels,
    StageRecord,
    TaskResult,
)
from pipelines.report.registry import Content, Sweep, find_report
from pipelines.report.sweep import whole_sweep

LABELS = {"average": "Weight Averaging", "ties": "TIES-Merging", "dare": "DARE", "wudi": "WUDI-Merging",
          "fisher": "Fisher Merging", "regmean": "RegMean", "individual": "Individual"}  # fmt: skip
BENCHMARKS = {
    "math": ["gsm8k", "math500"],
    "code": ["humaneval_plus", "mbpp_plus"],
    "chat": ["ifeval", "commonsense_qa"],
}
HARC = {"method": "harc", "alpha": 0.9, "beta": None, "hessian": "full", "layers": "all", "tol": 1e-6,
        "control": "none"}  # fmt: skip
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "harc": "0.1.0", "commit": "0123abc"}
EDGES = [round(0.02 * step, 2) for step in range(51)]


def content(cells: Sequence[CellRecord], report: str | None = None, scale: str = "tiny") -> Content:
    """What a report says, without the files and figures that build_report makes of it."""
    name = report or cells[0].experiment
    return find_report(name)(Sweep(name, "", scale, whole_sweep(cells)))


def verdicts(made: Content) -> list[str]:
    return [finding.verdict for finding in made.findings]


def overall(cell: CellRecord) -> float:
    """METHOD section 8, computed here from the counts, in per cent."""
    domains: dict[str, list[float]] = {}
    for task in cell.tasks.values():
        domains.setdefault(task.domain, []).append(np.sum(task.counts) / (len(task.counts) * task.samples))
    return 100 * float(np.mean([np.mean(values) for values in domains.values()]))


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
) -> CellRecord:
    """One finished cell. level: the mean share of right samples; calibrate: HARC's settings, where there is HARC."""
    rng = np.random.default_rng([seed, int(1000 * level), len(LABELS[merge]), layers])
    harc = calibrate is not None
    unmerged = merge == "individual"
    label = LABELS[merge]
    row = {
        "source": f"{label} with the source's routers",
        "merged": f"Sources with the routers of {label}",
        "decisions": f"{label} with the source's decisions",
    }.get(fields.get("swap", ""), label) + " + SFT" * fields.get("sft", False)
    stages = [StageRecord("merge", merge, f"{merge}-key", f"outputs/merge/{merge}-key", True, 3.5, 1.25)]
    config = {
        "scale": {"name": scale, "size": {"parameters": 3.6e6, "layers": layers, "hidden": 128, "experts": 16},
                  "engine": {"name": "vllm"}},
        "merge": {"method": merge, "label": label},
        "calibrate": {**HARC, **calibrate} if calibrate is not None else {"method": "none"},
        "calibration_data": {"composition": "srccrt", "fraction": 1.0, "seed": 0, **(data or {})},
        "experiment": {"name": experiment}, "domains": list(domains), "seed": 0,
    }  # fmt: skip
    made = CellRecord(
        experiment=experiment, scale=scale, row=RowLabels(row, "yes" if harc else "no"), merge=merge,
        calibrate="harc" if harc else "none", status="ok", seed=0,
        overrides=[f"merge={merge}", f"calibrate={'harc' if harc else 'none'}"], config=config, versions=dict(VERSIONS),
        tasks=tasks(rng, level, domains, problems),
        routing=None if unmerged else routing(rng, domains, layers, 0.8 if harc else 1.0),
        calibration=calibration(rng, layers) if harc else None,
        runtime_s=None if unmerged else 3.5 + 12.0 * harc, peak_memory_gb=None if unmerged else 1.25, stages=stages,
    )  # fmt: skip
    return replace(made, **fields)


def numbered(cells: list[CellRecord]) -> list[CellRecord]:
    """The same cells as those of the lines in their experiment's own file, in the order of these."""
    file = CONF / "experiment" / f"{cells[0].experiment}.yaml"
    lines = OmegaConf.to_container(OmegaConf.load(file).experiment.cells)
    return [
        replace(cell, config={**cell.config, "experiment": {"name": cell.experiment, "cells": lines, "cell": number}})
        for number, cell in enumerate(cells)
    ]


def tasks(rng, level: float, domains, problems: int) -> dict[str, TaskResult]:
    """Counts of right samples, 16 a problem, on problems that are the same ones (as hard) in every cell."""
    found = {}
    for domain in domains:
        for column in BENCHMARKS[domain]:
            ease = np.random.default_rng(len(column)).normal(0, 0.3, problems)
            found[column] = task(column, domain, rng.binomial(16, np.clip(level + ease, 0.01, 0.99)))
    return found


def task(column: str, domain: str, counts: np.ndarray) -> TaskResult:
    ids = [f"{column}/{i}" for i in range(len(counts))]
    return TaskResult(f"tiny_{column}", domain, float(counts.mean() / 16), 16, 0.04, ids, counts.tolist())


def routing(rng, domains, layers: int, factor: float) -> RoutingResult:
    """A diagnosis: KL that grows with depth, mismatch and shift that go with it; on own inputs four times the shift."""
    depth = np.linspace(0.2, 1.0, layers)
    kl = {domain: factor * 0.06 * (1 + 0.3 * i) * depth**2 for i, domain in enumerate(domains)}
    mismatch = {domain: (0.3 + 2 * values).tolist() for domain, values in kl.items()}
    shift = {domain: (0.05 + 0.5 * values).tolist() for domain, values in kl.items()}
    draws = {domain: np.clip(rng.gamma(2.0, 0.03, 4000), 0, 1) for domain in domains}
    return RoutingResult(
        layers=list(range(layers)),
        kl={domain: values.tolist() for domain, values in kl.items()},
        mismatch=mismatch,
        shift={domain: [4 * value for value in values] for domain, values in shift.items()},
        shift_below={d: {str(limit): float((4 * v < limit).mean()) for limit in (0.1, 0.2)} for d, v in draws.items()},
        shift_same=shift,
        shift_quantiles_same={
            d: {str(q): float(np.quantile(v, q)) for q in (0.5, 0.9, 0.99)} for d, v in draws.items()
        },
        shift_below_same={d: {str(limit): float((v < limit).mean()) for limit in (0.1, 0.2)} for d, v in draws.items()},
        shift_histogram_same={
            d: Histogram(EDGES, (np.histogram(v, EDGES)[0] / len(v)).tolist()) for d, v in draws.items()
        },
        **losses(domains, factor),
        any_mismatch=dict.fromkeys(domains, 0.91),
        mismatches_per_token={domain: float(np.sum(values)) for domain, values in mismatch.items()},
        tokens=dict.fromkeys(domains, 1000),
        kl_mean=float(np.mean(list(kl.values()))),
        mismatch_mean=float(np.mean(list(mismatch.values()))),
        shift_mean=4 * float(np.mean(list(shift.values()))),
    )


def losses(domains, factor: float, sequences: int = 60) -> dict[str, Any]:
    """Losses of sequences that are the same ones (as hard, as long) in every cell; factor: of what merging costs."""
    tokens, source, merged = {}, {}, {}
    for domain in domains:
        common, own = np.random.default_rng(len(domain)), np.random.default_rng([len(domain), int(1000 * factor)])
        tokens[domain] = common.integers(5, 80, sequences).tolist()
        source[domain] = common.gamma(2, 0.03, sequences)
        merged[domain] = source[domain] + factor * 0.03 + own.normal(0, 0.004, sequences)
    means = {name: {d: float(np.average(values[d], weights=tokens[d])) for d in domains}
             for name, values in (("loss", merged), ("source_loss", source))}  # fmt: skip
    return {
        "response_tokens": tokens,
        "loss_by_sequence": {domain: values.tolist() for domain, values in merged.items()},
        "source_loss_by_sequence": {domain: values.tolist() for domain, values in source.items()},
        **means,
        **{f"{name}_mean": float(np.mean(list(values.values()))) for name, values in means.items()},
    }


def calibration(rng, layers: int, iterations: int = 20) -> CalibrationResult:
    """A calibrate report, each layer with its residual after every iteration."""
    rows = []
    for layer in range(layers):
        steps = iterations + int(rng.integers(5))
        residuals = np.geomspace(1.0, 8e-7, steps).tolist()
        rows.append(LayerResult(layer, steps, residuals[-1], True, residuals, seconds=1.5, kl_before=0.05 * (layer + 1),
                                kl_after=0.04 * (layer + 1)))  # fmt: skip
    return CalibrationResult(rows, tokens=[1000, 1000], seconds=3.0 * layers, peak_memory_gb=1.2)


def failed(cell: CellRecord, error: str = "RuntimeError: out of memory", status: str = "failed") -> CellRecord:
    """The record of the same cell had it raised, or been left out."""
    return replace(cell, status=status, error=error, tasks={}, routing=None, routing_before=None, calibration=None,
                   calibration_two=None, cost={}, runtime_s=None, peak_memory_gb=None, stages=[])  # fmt: skip


def with_routing(cell: CellRecord, **fields: Any) -> CellRecord:
    """The same cell with other measures of routing."""
    assert cell.routing is not None
    return replace(cell, routing=replace(cell.routing, **fields))


def table1_cells(*, scale: str = "tiny", problems: int = 100, layers: int = 4, gain: float = 0.015, seed: int = 0):
    """The 13 cells of table 1: Individual, six merges without and with HARC, whose answers go with their merge's."""
    rng = np.random.default_rng(seed)
    columns = {column: domain for domain in ("math", "code") for column in BENCHMARKS[domain]}
    levels = dict(zip(columns, (0.62, 0.48, 0.55, 0.66), strict=True))
    ease = {column: rng.normal(0, 0.35, problems) for column in columns}

    def cell(merge: str, level: float, near: dict[str, np.ndarray], calibrate: dict[str, Any] | None) -> CellRecord:
        found = {
            column: task(column, domain, rng.binomial(16, np.clip(levels[column] + level + near[column], 0.01, 0.99)))
            for column, domain in columns.items()
        }
        return record("table1", merge, 0.5, scale=scale, layers=layers, calibrate=calibrate, tasks=found)

    cells = [cell("individual", 0.12, ease, None)]
    six = {"average": 0.0, "ties": -0.05, "dare": 0.01, "wudi": 0.05, "fisher": -0.02, "regmean": 0.03}
    for merge, level in six.items():
        mine = {column: values + rng.normal(0, 0.15, problems) for column, values in ease.items()}
        near = {column: values + rng.normal(0, 0.03, problems) for column, values in mine.items()}
        cells += [cell(merge, level, mine, None), cell(merge, level + gain * rng.uniform(0.2, 2), near, {})]
    return cells


def merging(experiment: str, merges, domains=("math", "code"), scale: str = "tiny") -> list[CellRecord]:
    """Individual, and each method without and with HARC; table 5's calibrated cells know two models' calibration."""
    cells = [record(experiment, "individual", 0.75, domains=domains, scale=scale)]
    for i, merge in enumerate(merges):
        two = calibration(np.random.default_rng(i), 4, iterations=40)
        cells.append(record(experiment, merge, 0.4 + 0.02 * i, domains=domains, scale=scale))
        cells.append(record(experiment, merge, 0.48 + 0.02 * i, domains=domains, scale=scale, calibrate={},
                            calibration_two=two))  # fmt: skip
    return cells


def cost(*seconds: float, memory: float = 1.0, device: float | None = None) -> list[Repetition]:
    """Repeats of a timed step; memory rises by a hundredth from one to the next."""
    return [Repetition(one, memory + 0.01 * i, device_memory_gb=device) for i, one in enumerate(seconds)]


def table3(scale: str = "tiny") -> list[CellRecord]:
    def cell(merge: str, repeats: list[Repetition], calibrate=None) -> CellRecord:
        made = record("table3", merge, 0.5, scale=scale, calibrate=calibrate)
        step = "merge" if calibrate is None else "calibrate"
        return replace(made, tasks={}, routing=None, calibration=None, cost={step: repeats})

    return numbered([
        cell("average", cost(0.5, 0.6, 0.7)),
        cell("ties", cost(2.0, 2.2, 2.4)),
        cell("dare", cost(1.5, 1.6, 1.9, memory=1.2)),
        cell("regmean", cost(6.0, 6.5, 9.0, memory=2.0, device=3.5)),
        cell("ties", cost(14.0, 15.0, 16.0, memory=1.8), calibrate={}),
    ])  # fmt: skip


def table4(scale: str = "tiny", levels=(0.4, 0.45, 0.5, 0.6), layers: int = 4) -> list[CellRecord]:
    cells = [record("table4", "wudi", levels[0], scale=scale, layers=layers)]
    for share, level, done in zip(("25%", "50%", "all"), levels[1:], (0.25, 0.5, 1.0), strict=True):
        cell = record("table4", "wudi", level, scale=scale, layers=layers, calibrate={"layers": share})
        assert cell.calibration is not None
        kept = cell.calibration.layers[-round(done * layers) :]
        cells.append(replace(cell, calibration=replace(cell.calibration, layers=kept, seconds=3.0 * len(kept))))
    return numbered(cells)


def table7(scale: str = "tiny") -> list[CellRecord]:
    cells = []
    for merge, level in (("wudi", 0.5), ("regmean", 0.45)):
        for sft, harc, gain, kl in ((False, False, 0, 0.05), (False, True, 0.04, 0.04), (True, False, 0.02, 0.07),
                                    (True, True, 0.1, 0.06)):  # fmt: skip
            cell = record("table7", merge, level + gain, scale=scale, calibrate={} if harc else None, sft=sft)
            cells.append(with_routing(cell, kl_mean=kl))
    trained = [
        record("table7", merge, 0.5, scale=scale, calibrate={"method": "router_sft"}) for merge in ("wudi", "regmean")
    ]
    return [*cells, *(replace(cell, calibrate="router_sft", calibration=None) for cell in trained)]


def fig1(domains=("math", "code")) -> list[CellRecord]:
    return numbered([
        record("fig1", "individual", 0.75, domains=domains),
        record("fig1", "wudi", 0.5, domains=domains),
        record("fig1", "wudi", 0.56, domains=domains, calibrate={}),
        record("fig1", "wudi", 0.58, domains=domains, swap="source"),
        record("fig1", "wudi", 0.6, domains=domains, swap="merged"),
        record("fig1", "wudi", 0.65, domains=domains, swap="decisions"),
    ])  # fmt: skip


def fig3a() -> list[CellRecord]:
    levels = {"identity": 0.45, "diagonal": 0.5, "full": 0.55}
    cells = [record("fig3a", "wudi", level, calibrate={"hessian": name}) for name, level in levels.items()]
    return numbered([record("fig3a", "wudi", 0.4), *cells])


def fig3b() -> list[CellRecord]:
    alphas = {0.1: 0.555, 0.3: 0.56, 0.5: 0.555, 0.7: 0.56, 0.9: 0.555, 1.0: 0.56}
    betas = {1e-3: 0.55, 1e-2: 0.55, 0.1: 0.54, 1.0: 0.35, 10.0: 0.3}
    cells = [record("fig3b", "wudi", 0.45)]
    cells += [record("fig3b", "wudi", level, calibrate={"alpha": value}) for value, level in alphas.items()]
    cells += [record("fig3b", "wudi", level, calibrate={"beta": value}) for value, level in betas.items()]
    return numbered(cells)


def fig3c() -> list[CellRecord]:
    levels = {"srccrt": 0.6, "srcall": 0.5, "gt": 0.52, "prompt": 0.57, "c4": 0.55}
    cells = [record("fig3c", "wudi", level, calibrate={}, data={"composition": name}) for name, level in levels.items()]
    return numbered([record("fig3c", "wudi", 0.4), *cells])


def fig4a(experiment: str = "fig4a", layers: int = 4) -> list[CellRecord]:
    return [record(experiment, "wudi", 0.5, layers=layers),
            record(experiment, "wudi", 0.55, layers=layers, calibrate={})]  # fmt: skip


def fig4b() -> list[CellRecord]:
    levels = {"regmean": 0.4, "wudi": 0.45}

    def cell(merge: str, fraction: float, seed: int) -> CellRecord:
        gain = 0.04 if fraction < 0.4 else 0.08
        data = {"fraction": fraction, "seed": seed}
        return record("fig4b", merge, levels[merge] + gain, calibrate={}, data=data, seed=seed)

    return numbered([
        *(record("fig4b", merge, level) for merge, level in levels.items()),
        *(cell(merge, part, seed) for merge in levels for part in (0.1, 0.2, 0.4, 0.7) for seed in (0, 1)),
        *(cell(merge, 1.0, 0) for merge in levels),
    ])  # fmt: skip


def logit_shift() -> list[CellRecord]:
    return [record("logit_shift", "ties", 0.5), record("logit_shift", "wudi", 0.5, seed=1)]


FEWER = {("published", 2): 90, ("published", 3): 60, ("refined", 2): 9, ("refined", 3): 12}


def appendix_b1(iterations: dict[tuple[str, int], int] = FEWER) -> list[CellRecord]:
    """A cell a solver and number of models, with at least so many iterations a layer."""
    return numbered([
        record("appendix_b1", "wudi", 0.5, domains=("chat", "math", "code")[-count:], calibrate={"solver": solver},
               tasks={}, calibration=calibration(np.random.default_rng(0), 4, least))
        for (solver, count), least in iterations.items()
    ])  # fmt: skip


def grid() -> list[CellRecord]:
    cells = []
    for merge, key, values in (("ties", "density", (0.1, 0.2, 0.4)), ("regmean", "damping", (0.7, 0.9))):
        for i, value in enumerate(values):
            cell = record("grid", merge, 0.4 + 0.05 * (i % 2))
            cell.config["merge"][key] = value
            cells.append(cell)
    for value, level in ((0.5, 0.45), (0.9, 0.6)):
        cells += [record("grid", merge, level, calibrate={"alpha": value}) for merge in ("ties", "regmean")]
    return cells


def everything() -> dict[str, list[CellRecord]]:
    """Cells of every experiment of the paper, and the grid."""
    six = ("average", "ties", "dare", "wudi", "fisher", "regmean")
    return {
        "table1": table1_cells(problems=40), "table3": table3(), "table4": table4(),
        "table5": merging("table5", six, ("chat", "math", "code")), "table6": merging("table6", six[:5]),
        "table7": table7(), "fig1": fig1(), "fig3a": fig3a(), "fig3b": fig3b(), "fig3c": fig3c(), "fig4a": fig4a(),
        "fig4b": fig4b(), "logit_shift": logit_shift(), "mismatch": fig4a("mismatch"), "grid": grid(),
        "appendix_b1": appendix_b1(),
    }  # fmt: skip


def clone(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """A copy whose containers a test may change."""
    return copy.deepcopy(list(cells))
