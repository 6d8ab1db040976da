"""tuned=auto on stand-ins of the paper's data, in its formats, with random models: the grid first, then its choice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.config import Config
from pipelines.sweep.tuned import apply_tuned, tuned_text
from pipelines.sweep.tuning import grid_of
from tests.pipelines.composing import hydra_conf  # noqa: F401
from tests.pipelines.engines.small_cells import make_folder
from tests.pipelines.small_world import write_jsonl
from tests.places import ROOT

CODE = "[Instruction]\nAdd {n}.\n\n[Implementation]\n```python\ndef add(x):\n    return x + {n}\n```\n\n[Tests]\n"
TESTS = "```python\nassert add(1) == {m}\n```\n"


def make_stand_ins(folder: Path) -> list[str]:
    """Checkpoints and data; what to run them with at scale=olmoe."""
    make_folder(folder)
    math = [{"problem": f"What is {n} plus 1?", "generated_solution": f"It is \\boxed{{{n + 1}}}.",
             "expected_answer": str(n + 1)} for n in range(12)]  # fmt: skip
    code = [{"id": n, "instruction": f"Add {n}.", "response": (CODE + TESTS).format(n=n, m=n + 1)} for n in range(12)]
    paths = {"math": write_jsonl(folder / "m.jsonl", math), "code": write_jsonl(folder / "c.jsonl", code)}
    parts = {"heldout": (0, 4), "validation": (4, 4), "calibration": (8, 4)}
    return [
        "scale=olmoe", f"scale.base={folder}/base", "scale.max_length=64", "scale.dtype=float32", "tracker=none",
        "scale.size={parameters: 1e5, layers: 2, hidden: 32, experts: 4, active: 5e4, train_tokens: 1e5}",
        "scale.engine={dtype: float32, max_model_len: 200}", "evaluate.engine=transformers", "calibration_data=gt",
        "scale.sample={max_new_tokens: 8, target: 4, min_kept: 1}", "evaluate.tasks=[]",
        *(f"scale.domains.{name}.checkpoint={folder}/{name}" for name in paths),
        *(f"scale.domains.{name}.{part}={{path: {path}, skip: {skip}, limit: {limit}}}"
          for name, path in paths.items() for part, (skip, limit) in parts.items()),
    ]  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=ROOT, env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_grid_runs_first_and_its_choice_is_taken(tmp_path):
    outputs = tmp_path / "outputs"
    words = ["-m", "merge=ram", "calibrate=none,harc", "tuned=auto", "grid_alpha=[0.5]", f"outputs={outputs}",
             *make_stand_ins(tmp_path)]  # fmt: skip
    plan = run(*words, "plan=true")
    assert plan.returncode == 0, plan.stderr + plan.stdout
    assert "validate" in plan.stdout and "its choice may need other merges" in plan.stdout + plan.stderr
    assert not list(outputs.glob("*/*/manifest.json"))
    done = run(*words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tuned = outputs / "reports/grid-olmoe/tuned.yaml"
    chosen = yaml.safe_load(tuned.read_text())
    assert chosen["merge"].keys() == {"ram"} and chosen["calibrate"] == {"harc": {"alpha": 0.5}}
    cells = [json.loads(line) for line in (outputs / "reports/cells-olmoe/cells.jsonl").read_text().splitlines()]
    assert [cell["status"] for cell in cells] == ["ok", "ok"]
    assert all(cell["config"]["tuned"] == str(tuned) for cell in cells)
    assert cells[1]["config"]["calibrate"]["alpha"] == 0.5
    assert "chosen on validation data" in (outputs / "reports/cells-olmoe/report.html").read_text()


def composed(*overrides: str) -> Config:
    from hydra import compose
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, Config)
    return config


def test_a_setting_given_by_hand_wins_over_the_grids(tmp_path):
    file = tmp_path / "tuned.yaml"
    file.write_text(tuned_text("tiny", ["math", "code"], {"ties": {"density": 0.7}}, 1.0))
    words = ["merge=ties", f"tuned={file}"]
    taken = apply_tuned(composed(*words), words)
    assert (taken.merge.density, taken.calibrate.alpha) == (0.7, 1.0)
    words += ["merge.density=0.3", "calibrate.alpha=0.2"]
    kept = apply_tuned(composed(*words), words)
    assert (kept.merge.density, kept.calibrate.alpha) == (0.3, 0.2)
    words = ["merge=ties", f"tuned={file}", "calibrate.beta=0.1"]
    assert apply_tuned(composed(*words), words).calibrate.alpha == 0.9  # β takes its place


def test_cells_that_would_need_several_grids_are_refused():
    one, other = composed("tuned=auto"), composed("tuned=auto", "domains=[chat,math,code]")
    with pytest.raises(ValueError, match="differ in domains or architecture"):
        grid_of([one, other], [])
    with pytest.raises(ValueError, match="none of the cells merges"):
        grid_of([composed("tuned=auto", "merge=individual", "calibrate=none")], [])
    assert grid_of([composed()], []) is None
