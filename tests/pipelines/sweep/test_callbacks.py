"""A sweep's seeds; its end: one report per seed, one of all, and the exit status."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from pipelines.config import ExperimentConfig, TrackerConfig
from pipelines.record import write_record
from pipelines.sweep.callbacks import ReportCallback
from pipelines.sweep.outcome import gathered
from tests.pipelines.report import records


@pytest.mark.parametrize(("broken", "status"), [(False, 0), (True, 1)])
def test_a_sweep_over_seeds_ends_in_a_report_for_each_and_one_of_all(tmp_path, broken, status):
    cells = [
        dataclasses.replace(cell, seed=seed, overrides=[f"cell={number}", f"seed={seed}"])
        for seed in (0, 1)
        for number, cell in enumerate(records.table4())
    ]
    if broken:
        cells[-1] = records.failed(cells[-1], "RuntimeError: no memory")
    for number, cell in enumerate(cells):
        write_record(tmp_path / "sweep" / str(number), cell)
    config = OmegaConf.create(
        {
            "plan": False,
            "rehearse": False,
            "hydra": {"sweep": {"dir": str(tmp_path / "sweep")}},
            "outputs": str(tmp_path),
            "scale": {"name": "tiny"},
        }
    )
    config.experiment = OmegaConf.structured(ExperimentConfig("table4", report="table4"))
    config.tracker = OmegaConf.structured(TrackerConfig(kind="none", directory=str(tmp_path)))
    with gathered() as outcome:
        ReportCallback().on_multirun_end(config)
    reports = {path.name for path in (tmp_path / "reports").glob("[!.]*") if path.is_dir()}
    assert reports == {"table4-tiny", "table4-tiny-seed1", "table4-tiny-2seeds"} and outcome.status == status


@pytest.mark.parametrize(
    ("words", "seeds", "expected"),
    [
        (["merge=ties", "seeds=3"], 3, ["merge=ties", "seed=0,1,2"]),
        (["seeds=2", "seed=4", "merge=ties,wudi"], 2, ["merge=ties,wudi", "seed=4,5"]),
        (["seeds=2", "seed=1,3"], 2, ["seeds=2", "seed=1,3"]),  # each cell refuses it
        (["merge=ties,wudi"], 1, ["merge=ties,wudi"]),
        (["seed=4"], 1, ["seed=4"]),
    ],
)
def test_seeds_become_a_sweep_over_seed(words, seeds, expected):
    config = OmegaConf.create({"seed": 4 if "seed=4" in words else 0, "seeds": seeds,
                               "hydra": {"overrides": {"task": words}}})  # fmt: skip
    OmegaConf.set_struct(config, True)
    ReportCallback().on_multirun_start(config)
    assert list(config.hydra.overrides.task) == expected
