"""engine=local on real stages: made once in workers, failures and deaths confined, the same as a chain walked alone."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.chain.cell import cell_of
from pipelines.chain.run import record_of
from pipelines.engines.unit import FAILED, make_unit, write_units
from pipelines.graph.make import Making, make
from pipelines.graph.unite import unite
from pipelines.runner.make import Runner
from pipelines.runner.resources import Resources
from tests.harc.merging.merge_models import load_state
from tests.pipelines.engines.small_cells import (
    ROWS,
    STATUS,
    cells,
    comparable,
    make_folder,
    overrides,
    status,
    working_in,
)
from tests.places import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def made(folder) -> Making:
    """Rows of which one is well, one's merge dies once, one's always, and one's held-out text is no text."""
    with working_in(folder):
        yield make(cells(folder, folder / "outputs", *ROWS), folder / "work")


def test_every_stage_is_made_but_those_that_fail_and_those_behind_them(made):
    assert status(made) == STATUS


def test_the_records_of_the_rows_behind_a_failure_name_the_stage_the_reason_and_what_it_printed(made):
    records = [made.record(row) for row in range(len(ROWS))]
    assert [record.status for record in records] == ["ok", "ok", "failed", "failed"]
    died, broken = records[2].error, records[3].error
    assert "merge tiny-dies: its process was killed (signal 9" in died and "2 times" in died
    assert broken.startswith("diagnose tiny-ties: ") and "no_records.jsonl" in broken
    printed = Path(broken.rpartition("what it printed: ")[2].rstrip(")"))
    assert "Traceback" in printed.read_text() and "diagnose" in printed.name


def test_a_row_has_the_record_and_the_weights_of_its_chain_walked_alone(made, folder):
    alone = dataclasses.replace(made.graph.rows[0].config, outputs=str(folder / "alone"))
    cell = cell_of(alone)
    walked = Runner(folder / "alone").run_all(cell.nodes())
    record = record_of(cell, {one.path: one for one in walked}, folder / "alone")
    assert comparable(record) == comparable(Making(made.graph, {}, made.results).record(0))
    (merged,) = (folder / "outputs/merge").glob("tiny-average-*")
    weights = load_state(walked[0].path)
    assert all((weights[name] == value).all() for name, value in load_state(merged).items())


def test_a_unit_of_work_is_done_by_a_command_and_its_result_is_a_file(made, folder, tmp_path):
    config = dataclasses.replace(made.graph.rows[0].config, outputs=str(tmp_path / "outputs"))
    graph = unite([config], Resources(memory_gb=100))
    units = write_units(graph, tmp_path / "units")
    merge, diagnose = graph.tasks
    early = make_unit(units[diagnose], diagnose, tmp_path / "early.json")
    assert early.status == FAILED and "merge tiny-average is missing or damaged" in early.error
    worker = [sys.executable, "-P", "-m", "pipelines.engines.worker", str(units[merge]), merge]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(worker, cwd=folder, env=environment, check=False).returncode == 0
    assert unite([config], Resources(memory_gb=100)).tasks[merge].there
    unknown = make_unit(units[merge], "0123456789ab", tmp_path / "unknown.json")
    assert unknown.status == FAILED and "no stage of key 0123456789ab" in unknown.error


def test_sigterm_ends_the_workers_and_the_same_command_goes_on(folder):
    command = [sys.executable, str(ROOT / "run.py"), *overrides(folder, folder / "stopped"), "merge=waits",
               "merge.trace=waiting"]  # fmt: skip
    log = (folder / "stopped.log").open("w")
    running = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    trace = folder / "waiting"
    while not trace.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0.2)
            break
    assert running.poll() is None, (folder / "stopped.log").read_text()[-3000:]
    worker = int(trace.read_text())
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert not psutil.pid_exists(worker)
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
