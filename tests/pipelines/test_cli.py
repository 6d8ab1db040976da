"""The command line as a user meets it: help, plan, errors in one line, exit statuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config.merging import merge_options
from tests.places import ROOT


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_help_names_every_group_and_option():
    text = run("--help").stdout
    for folder in (ROOT / "conf").iterdir():
        if list(folder.glob("*.yaml")) and folder.name != "accelerate":
            line = re.search(rf"^ *{folder.name} .*$", text, re.MULTILINE)
            assert line, f"group {folder.name} is missing from --help"
            for option in folder.glob("[!_]*.yaml"):  # those with _ are inherited, not chosen
                assert re.search(rf"\b{option.stem}\b", line.group()), f"{folder.name}={option.stem} is missing"
    (line,) = re.findall(r"^ *merge .*$", text, re.MULTILINE)
    assert all(re.search(rf"\b{option}\b", line) for option in merge_options())
    assert text.count("python run.py") >= 5


def test_plan_shows_every_stage_of_a_sweep_once_and_makes_nothing(tmp_path):
    done = run("+experiment=table1", "plan=true", f"outputs={tmp_path / 'o'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^│ pretrain +│ +1 of 1 │ +13 │", done.stdout, re.MULTILINE)
    assert re.search(r"^│ evaluate +│ 14 of 14 │ +13 │", done.stdout, re.MULTILINE)
    assert "44 stages for 13 rows: 0 there, 44 would run." in done.stdout
    assert re.search(r"13 rows: Individual .*1 left out: not a row of table1", done.stdout, re.DOTALL)
    made = [path for path in tmp_path.rglob("*") if path.is_file() and "hydra" not in path.parts]
    assert made == []


def test_cells_of_lines_are_rows_of_the_plan(tmp_path):
    done = run("+experiment=fig3a", "plan=true", f"outputs={tmp_path / 'o'}")
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"^WUDI-Merging.* \[(.*)\] \(tiny\)", done.stdout, re.MULTILINE))
    harc = {f"calibrate=harc calibrate.hessian={name}" for name in ("full", "diagonal", "identity")}
    assert shown == {"calibrate=none", *harc}


def test_plan_of_another_machine_counts_its_gpu_hours(tmp_path):
    machine = ["engine.cores=64", "engine.gpus=8", "engine.memory_gb=2000", "engine.gpu_memory_gb=80"]
    done = run("scale=olmoe", "plan=true", f"outputs={tmp_path}", "launch.processes=8", *machine)
    assert done.returncode == 0, done.stderr
    assert re.search(r"on 64 cores, 8 GPUs with 2000 GB; .* \d+\.\d GPU hours", done.stdout)
    assert "would fail" not in done.stdout


@pytest.mark.parametrize("scale", ["olmoe", "qwen3"])
def test_plan_of_a_real_scale_estimates_memory_and_disk(tmp_path, scale):
    done = run(f"scale={scale}", "plan=true", f"outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"finetune/.*\d+\.\d [GT]B .*\d+\.\d GB", done.stdout)
    assert re.search(r"8 × 80 GB GPU, 96 cores, 1000 GB +│ +~ .* h .* min │", done.stdout)
    assert re.search(r"rows would fail at once: stage finetune of .* needs about \d+ GB", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["+experiment=tabel1"], "experiment/tabel1.*table1"),
        (["merge=tise"], "merge/tise.*ties"),
        (["merge=ties", "merge.densty=0.3"], "densty.*valid keys there: align, density, label, method"),
        (["calibrate.alpha=much"], "calibrate.alpha=much: expected a number from 0 to 1, or auto"),
        (["calibrate.target=x"], "calibrate.target=x: expected one of merged_inputs, source_inputs"),
        (["calibrate.control=x"], "calibrate.control=x: expected one of none, random, swapped"),
        (["merge=ties", "seeds=3"], "seeds=3: expected a sweep"),
        (["calibrate.hessian=identity", "calibrate.objective=kl"], "calibrate.hessian=identity ignores"),
        (["merge=ties", "merge.density=much"], "merge.density=much.*Float"),
        (
            ["+experiment=calibrate", "merged=a", "sources=[a]", "data=[b]", "out=c", "calibrate.control=random"],
            "calibrate.control=random: a negative control is no calibration",
        ),
        (["+experiment=calibrate", "sources=[a,b]"], "merged, data, out: not given"),
        (["+experiment=calibrate", "merged=/no/where", "sources=[a]", "data=[b]", "out=c"], "/no/where: no such file"),
        (["scale.base=./nowhere"], "./nowhere: no such file or folder"),
        (["merge=ties,wudi"], "multirun"),
        (["scale.name=../.."], r"scale.name is '../..': expected a plain file name"),
        (["experiment.name=../../../x"], "'../../../x': expected a plain file name"),
    ],
)
def test_a_wrong_word_gets_one_line_and_a_status(tmp_path, arguments, says):
    done = run(*arguments, f"outputs={tmp_path}", "hydra.mode=RUN")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and "debug=true" in lines[1], done.stderr
    assert re.search(says, lines[0]), lines[0]


def test_debug_shows_where_it_was_raised(tmp_path):
    done = run("scale.base=./nowhere", "debug=true", f"outputs={tmp_path}")
    assert done.returncode != 0 and "Traceback" in done.stderr and "pipelines/chain" in done.stderr
