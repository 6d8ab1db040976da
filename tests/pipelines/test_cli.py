"""The command line as a user meets it: help, plan, errors in one line, exit statuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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
            for option in folder.glob("*.yaml"):
                assert re.search(rf"\b{option.stem}\b", line.group()), f"{folder.name}={option.stem} is missing"
    assert text.count("python run.py") >= 5


def test_plan_shows_the_chain_of_every_cell_and_makes_nothing(tmp_path):
    done = run("+experiment=table1", "plan=true", f"outputs={tmp_path / 'o'}")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^│ pretrain ", done.stdout, re.MULTILINE)) == 13 and "would run" in done.stdout
    assert "not a row of table1" in done.stdout
    made = [path for path in tmp_path.rglob("*") if path.is_file() and "hydra" not in path.parts]
    assert made == []


def test_cells_of_lines_are_composed_in_parallel_processes_too(tmp_path):
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = run("+experiment=fig3a", "plan=true", f"outputs={tmp_path / 'o'}", *parallel)
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"^WUDI-Merging.* \[(.*)\] \(tiny\)", done.stdout, re.MULTILINE))
    harc = {f"calibrate=harc calibrate.hessian={name}" for name in ("full", "diagonal", "identity")}
    assert shown == {"calibrate=none", *harc}


@pytest.mark.parametrize("scale", ["olmoe", "qwen3"])
def test_plan_of_a_real_scale_estimates_memory_and_disk(tmp_path, scale):
    done = run(f"scale={scale}", "plan=true", f"outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"finetune .*\d+\.\d GB .*\d+\.\d GB", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["+experiment=tabel1"], "experiment/tabel1.*table1"),
        (["merge=tise"], "merge/tise.*ties"),
        (["merge=ties", "merge.densty=0.3"], "densty.*valid keys there: density"),
        (["calibrate.alpha=much"], "calibrate.alpha=much: expected a number from 0 to 1, or auto"),
        (["merge=ties", "merge.density=much"], "merge.density=much.*Float"),
        (["+experiment=calibrate", "sources=[a,b]"], "merged, data, out: not given"),
        (["+experiment=calibrate", "merged=/no/where", "sources=[a]", "data=[b]", "out=c"], "/no/where: no such file"),
        (["scale.base=./nowhere"], "./nowhere: no such file or folder"),
        (["merge=ties,wudi"], "multirun"),
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
    assert done.returncode != 0 and "Traceback" in done.stderr and "chain.py" in done.stderr
