"""docs/extending.md as it stands: its files are written to a folder outside the package, and what it says is run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import harc
from eval.config import EngineConfig
from eval.judges import judge, registry
from harc.solver import objectives
from harc.solver.fit import fit_router
from pipelines.report import registry as reports
from pipelines.report.build import build_report
from pipelines.stages.evaluate import EvaluateStageConfig, evaluate
from tests.eval.conftest import model, tokenizer  # noqa: F401
from tests.harc.solver.test_solver import problem
from tests.harc.tiny_models import family, text
from tests.pipelines.report.records import record
from tests.places import ROOT

DOC = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL))
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
            for line in block.splitlines()]  # fmt: skip
SHOWS = {  # what each command's plan has to name
    "merge.share=0.3": "merge/tiny-blend-",
    "merges=[ties,blend]": "Blended + HARC",
    "calibrate.objective=reverse_kl": "calibrate/tiny-ties-harc-",
    "evaluate.task_folder=my_tasks": "evaluate/tiny-wudi-harc-",
    "plugins=[my_judge]": "sample/tiny-math-srccrt-",
    "+experiment=alphas": "calibrate.alpha=0.9",
    "scale=small": "pretrain/small-",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the document's files, the working directory; what its modules register is forgotten afterwards."""
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reports.report_names()  # imports those of experiments/, once per process: they stay
    for home, name in ((objectives, "_OBJECTIVES"), (registry, "_JUDGES"), (reports, "_REPORTS")):
        monkeypatch.setattr(home, name, dict(getattr(home, name)))
    for name in FILES:
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    return tmp_path


def test_every_part_has_its_files_and_its_command():
    assert sorted(FILES) == [
        "my_blend.py", "my_conf/experiment/alphas.yaml", "my_conf/scale/small.yaml", "my_judge.py", "my_objective.py",
        "my_report.py", "my_tasks/capitals.jsonl", "my_tasks/capitals.yaml", "questions.jsonl",
    ]  # fmt: skip
    assert [sum(shown in command for command in COMMANDS) for shown in SHOWS] == [1] * len(SHOWS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_plan_what_the_text_says(command, folder):
    assert command.startswith("python run.py ") and command.endswith(" plan=true")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *command.split()[2:], "tracker=none"], cwd=folder, capture_output=True,
        env={**os.environ, "COLUMNS": "160", "PYTHONPATH": path}, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (shown,) = (shown for word, shown in SHOWS.items() if word in command)
    assert shown in done.stdout


def reverse_kl(weight, features, routers) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, source in zip(features, routers, strict=True):
        own, theirs = (torch.distributions.Categorical(logits=x @ w.T) for w in (weight, source))
        total = total + torch.distributions.kl_divergence(own, theirs).mean()
    return total


def test_the_objective_reaches_its_minimum_in_a_fit(folder):
    __import__("my_objective")
    features, routers = problem(tokens=(120, 90), hidden=5, experts=4, dtype=torch.float64)
    start = torch.stack(routers).mean(0)
    quadratic = fit_router(features, routers, init=start).weight
    found = fit_router(features, routers, init=start, objective="reverse_kl").weight.requires_grad_()
    value = reverse_kl(found, features, routers)
    value.backward()
    assert value < reverse_kl(quadratic, features, routers)
    assert found.grad.abs().max() < 1e-4  # L-BFGS ends when a step changes the loss by less than 1e-9


def test_the_objective_calibrates_a_model_and_no_other_setting_may_name_it_unimported(folder, tmp_path):
    with pytest.raises(ValueError, match=r"objective=reverse_kl: expected one of quadratic, kl$"):
        harc.SolveSettings(objective="reverse_kl")
    __import__("my_objective")
    paths = family("olmoe", tmp_path)
    data = [text(count=12, seed=seed) for seed in (1, 2)]
    for name in ("quadratic", "reverse_kl"):
        report = harc.calibrate(
            paths[0], paths[1:], data, out=tmp_path / name, objective=name, min_tokens=8, progress=False
        )
        assert all(layer.kl_after < layer.kl_before for layer in report.layers)
    weights = [harc.checkpoint.open_checkpoint(tmp_path / name) for name in ("quadratic", "reverse_kl")]
    first, second = (one.read("model.layers.0.mlp.gate.weight") for one in weights)
    assert not torch.equal(first, second)


def test_the_benchmark_runs_as_a_stage_on_a_real_engine(folder, model):  # noqa: F811
    engine = EngineConfig(kind="transformers", dtype="float32")
    config = EvaluateStageConfig(
        model=str(model), tasks={"capitals": None}, task_folder="my_tasks", samples=2, engine=engine
    )
    (result,) = evaluate(config, {}, Path("out"))["tasks"].values()
    assert result["ids"] == ["0", "1"] and len(result["counts"]) == 2
    assert "What is the capital of France?" in Path("out/samples/capitals.jsonl").read_text()


def test_the_judge_judges_and_cannot_take_a_tasks_name(folder):
    __import__("my_judge")
    records = [{"answer": "yes"}, {"answer": "no"}, {"answer": "no"}]
    assert judge("yes_or_no", records, ["I think yes.", "Yes", ""]) == [True, False, False]
    before = registry.judges_digest()
    with (folder / "my_judge.py").open("a") as file:
        file.write("# another rule\n")
    assert registry.judges_digest() != before
    with pytest.raises(ValueError, match=r"judge 'gsm8k' of .* is already a task"):
        registry.register_judge("gsm8k")(lambda record, response: True)


def test_the_report_is_built_from_records(folder):
    __import__("my_report")
    cells = [record("alphas", "wudi", 0.4)]
    cells += [record("alphas", "wudi", level, calibrate={"alpha": alpha}) for alpha, level in ((0.5, 0.5), (0.9, 0.6))]
    asked = SimpleNamespace(name="alphas", report="alphas", title="Accuracy by alpha")
    made = build_report(asked, "tiny", cells, folder)
    assert [row.key for row in made.table.rows] == [("as merged",), ("0.5",), ("0.9",)]
    assert made.table.rows[2].gain["overall"].value == pytest.approx(
        made.table.rows[2].values["overall"] - made.table.rows[0].values["overall"]
    )
    assert (made.path / "report.html").is_file() and not made.failed
