"""The whole of Table 1 through the command line, with real parts and a cut-down budget: its report, its resume."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.places import ROOT

BUDGET = [
    "scale.world.pretrain=3000", "scale.world.finetune=1000", "scale.world.calibration=60", "scale.world.heldout=30",
    "scale.world.test=4", "scale.world.validation=2", "scale.pretrain.steps=60", "scale.finetune.steps=10",
    "scale.sample.min_kept=1", "scale.sample.max_new_tokens=24", "scale.max_new_tokens=24", "evaluate.samples=2",
    "calibration_data=gt",
]  # fmt: skip
pytestmark = pytest.mark.slow


def command(outputs: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), "+experiment=table1", f"outputs={outputs}", *BUDGET, *more]


def run(outputs: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        command(outputs, *more), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def stage_directories(outputs: Path) -> dict[str, int]:
    """Every finished stage and when its manifest was written."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": path.stat().st_mtime_ns
        for path in outputs.glob("*/*/manifest.json")
    }


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """A run killed once its second fine-tune was at work, and then repeated to its end."""
    outputs = tmp_path_factory.mktemp("table1") / "outputs"
    log = (outputs.parent / "killed.log").open("w")
    child = subprocess.Popen(command(outputs), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    deadline = time.time() + 600
    while child.poll() is None and time.time() < deadline and len(list(outputs.glob("finetune/.partial/*"))) < 1:
        time.sleep(0.2)
    assert child.poll() is None, (outputs.parent / "killed.log").read_text()[-3000:]
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = stage_directories(outputs)
    assert {name.split("/")[0] for name in before} >= {"world", "pretrain"}
    done = run(outputs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = stage_directories(outputs)
    assert all(after[name] == made for name, made in before.items()), "a finished stage was made again"
    (outputs.parent / "stdout").write_text(done.stdout)
    return outputs


def test_the_table_has_the_papers_columns_and_rows(outputs):
    paper = list(csv.reader((ROOT / "pipelines/report/paper/table1.csv").read_text().splitlines()))
    paper = [row for row in paper if not row[0].startswith("#")]
    table = list(csv.reader((outputs / "reports/table1-tiny/table.csv").read_text().splitlines()))
    assert table[0][: len(paper[0])] == paper[0]
    assert [row[:2] for row in table[1:]] == [row[:2] for row in paper[1:]]
    assert all(re.fullmatch(r"\d+\.\d\d", value) for row in table[1:] for value in row[2 : len(paper[0])])


def test_every_stage_was_made_once(outputs):
    stages = [name.split("/")[0] for name in stage_directories(outputs)]
    counts = {stage: stages.count(stage) for stage in set(stages)}
    assert counts == {
        "world": 1, "pretrain": 1, "finetune": 2, "sample": 2, "merge": 6, "calibrate": 6, "evaluate": 14,
        "diagnose": 12,
    }  # fmt: skip
    assert not [path for path in outputs.glob("*/.partial/*") if path.parent.parent.name != "hydra"]


def test_cells_carry_every_problems_count_and_the_routing_of_every_layer(outputs):
    lines = (outputs / "reports/table1-tiny/cells.jsonl").read_text().splitlines()
    cells = [cell for cell in map(json.loads, lines) if cell["status"] == "ok"]
    assert len(cells) == 13
    for cell in cells:
        for task in cell["tasks"].values():
            assert len(task["counts"]) == len(task["ids"]) == 4 and all(0 <= count <= 2 for count in task["counts"])
            assert task["accuracy"] == pytest.approx(sum(task["counts"]) / 8)
        if cell["merge"] != "individual":
            assert [len(layers) for layers in cell["routing"]["kl"].values()] == [4, 4]


def test_calibration_lowers_routing_kl_on_held_out_text(outputs):
    lines = (outputs / "reports/table1-tiny/cells.jsonl").read_text().splitlines()
    means = {(cell["merge"], cell["calibrate"]): cell["routing"]["kl_mean"]
             for cell in map(json.loads, lines) if cell["status"] == "ok" and cell["routing"]}  # fmt: skip
    for merge in ["average", "ties", "dare", "wudi", "fisher"]:
        assert means[merge, "harc"] < means[merge, "none"], merge
    # RegMean fits logits by least squares already; after ten steps of tuning little is left to gain.
    assert means["regmean", "harc"] < 1.01 * means["regmean", "none"]


def test_report_and_terminal_show_the_table(outputs):
    report = outputs / "reports/table1-tiny"
    names = {path.name for path in report.iterdir()}
    assert names >= {"table.csv", "table.md", "table.tex", "figure.png", "figure.svg", "report.html", "cells.jsonl"}
    assert "tiny" in (report / "report.html").read_text()
    shown = (outputs.parent / "stdout").read_text()
    assert "WUDI-Merging" in shown and "reports/table1-tiny" in shown


def test_a_second_run_makes_nothing_and_agrees(outputs):
    before = stage_directories(outputs)
    table = (outputs / "reports/table1-tiny/table.csv").read_text()
    done = run(outputs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert stage_directories(outputs) == before
    assert (outputs / "reports/table1-tiny/table.csv").read_text() == table


def test_a_damaged_stage_is_made_again_alone(outputs):
    before = stage_directories(outputs)
    victim = next(outputs.glob("merge/tiny-ties-*/model*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-100])
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "merge=ties", "calibrate=none", f"outputs={outputs}", *BUDGET],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert str(victim) in done.stdout and "damaged" in done.stdout
    after = stage_directories(outputs)
    assert {name for name in after if after[name] != before[name]} == {f"merge/{victim.parent.name}"}
