"""engine=slurm on a real SLURM of this machine: the records of engine=local, deaths confined, reports made later."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.engines.slurm.job import Job
from pipelines.engines.slurm.queue import cancel, gpus_of
from pipelines.graph.make import Making, make
from tests.pipelines.engines import slurm_here
from tests.pipelines.engines.small_cells import (
    ROWS,
    assert_as_by_engine_local,
    assert_death_is_confined,
    assert_failure_is_told,
    cells,
    killing,
    make_folder,
    more_rows,
    overrides,
    working_in,
)
from tests.places import ROOT

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'harc[slurm]'")
pytestmark = [
    pytest.mark.slow, pytest.mark.cluster,
    pytest.mark.skipif(slurm_here.reason() is not None, reason=f"no SLURM here: {slurm_here.reason()}"),
]  # fmt: skip
ENGINE = ["engine=slurm", "engine.look_seconds=0.5", "engine.memory_margin_gb=1", "engine.partition=main"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_here.slurm(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def made(cluster, folder) -> Making:
    """The rows of test_local, one whose merge is killed from outside in its middle, and one with HARC."""
    rows = [[*row, *ENGINE] for row in [*ROWS, *more_rows(folder)]]
    with working_in(folder), killing(folder / "waiting"):
        yield make(cells(folder, folder / "slurm", *rows), folder / "slurm-work")


def test_a_process_that_dies_costs_its_stage_alone(made, folder):
    assert_death_is_confined(made, folder, "merge tiny-dies: its process was killed (signal 9")


def test_a_stage_that_fails_says_what_it_printed(made):
    assert_failure_is_told(made)


def test_a_row_has_the_record_that_engine_local_gives_it(made, folder):
    assert_as_by_engine_local(made, folder)


def test_jobs_have_what_their_stages_take_and_wait_for_those_that_they_need(made):
    jobs = slurm_here.jobs()
    merge, diagnose = (jobs[made.graph.tasks[key].name] for key in made.graph.rows[0].keys)
    assert merge["NumCPUs"] == "1" and merge["Partition"] == "main" and merge["NumNodes"] == "1"
    asked = int(merge["MinMemoryNode"].rstrip("M")) * 2**20 / 1e9
    assert 1 <= asked - made.graph.tasks[made.graph.rows[0].keys[0]].resources.memory_gb < 1.1
    assert diagnose["StartTime"] >= merge["EndTime"]
    assert jobs[made.graph.tasks[made.graph.rows[2].keys[1]].name]["JobState"] == "CANCELLED"


def test_the_command_may_end_and_a_last_job_makes_the_report(cluster, folder):
    command = [sys.executable, str(ROOT / "run.py"), "-m", *overrides(folder, folder / "left"), *ENGINE,
               "engine.wait=false", "merge=average,dies"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    left = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = left.stdout + left.stderr
    assert left.returncode == 0 and "makes the report when they have ended" in said, said[-3000:]
    while any(job["JobState"] in ("PENDING", "RUNNING", "COMPLETING") for job in slurm_here.jobs().values()):
        time.sleep(0.5)
    (cells_file,) = (folder / "left" / "reports").glob("*/cells.jsonl")
    found = {one["merge"]: one for one in map(json.loads, cells_file.read_text().splitlines())}
    assert found["average"]["status"] == "ok" and found["dies"]["status"] == "failed"
    assert "its process was killed (signal 9" in found["dies"]["error"]


def test_a_job_whose_time_is_over_is_queued_again_as_it_was(cluster, tmp_path):
    from submitit import SlurmExecutor

    executor = SlurmExecutor(folder=tmp_path / "jobs", python=f"{sys.executable} -P", max_num_timeout=1)
    executor.update_parameters(job_name="slow", mem="500M", setup=[f"export PYTHONPATH={ROOT}"])
    begun = tmp_path / "begun"
    waits = [sys.executable, "-c", f"import pathlib, signal; pathlib.Path({str(begun)!r}).touch(); signal.pause()"]
    job = executor.submit(Job(waits, str(tmp_path), 1, str(tmp_path / "log"), str(tmp_path / "result.json"), 2))
    while not begun.exists():
        time.sleep(0.1)
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)  # as SLURM does before the limit
    while slurm_here.jobs()["slow"]["Restarts"] == "0":
        time.sleep(0.1)
    assert slurm_here.jobs()["slow"]["JobState"] in ("PENDING", "COMPLETING")
    assert not (tmp_path / "result.json").exists()
    cancel([job.job_id])


def test_gpus_are_counted_in_slurms_list_of_devices():
    assert gpus_of("gpu:a100:8(S:0-1)") == 8 and gpus_of("gpu:4") == 4 and gpus_of("(null)") == 0
    assert gpus_of("nic:2,gpu:a100:2(S:0),gpu:h100:2(S:1),shard:gpu:8") == 4
