"""The commands check and patch as a user runs them: page, record, exit status, and what is refused."""

import json
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

import harc
from pipelines.cli import main
from tests.pipelines.tools.test_own_merge import merge

__all__ = ["merge"]  # a fixture


@pytest.fixture
def command(tmp_path, monkeypatch):
    def call(*arguments: str) -> int:
        own = [f"outputs={tmp_path / 'o'}", f"hydra.run.dir={tmp_path / 'h'}"]
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments, *own])
        return main()

    return call


def test_a_check_leaves_a_page_and_a_record_and_says_by_its_status_how_it_went(merge, command, tmp_path):
    sources = "sources=[" + ",".join(map(str, merge["sources"])) + "]"
    assert command("+experiment=check", f"model={merge['merged']}", sources, "engines=[]") == 0
    folder = tmp_path / "o" / "reports" / "check-merged"
    assert sorted(path.name for path in folder.iterdir()) == ["check.html", "check.json"]
    record = json.loads((folder / "check.json").read_text())
    assert record["sound"] and record["movements"] and not record["findings"]
    assert "Sound: everything that was checked" in (folder / "check.html").read_text()

    shutil.copytree(merge["merged"], tmp_path / "damaged")
    file = sorted((tmp_path / "damaged").glob("*.safetensors"))[0]
    held = load_file(file)
    name = next(iter(held))
    save_file({**held, name: held[name] * float("nan")}, file, {"format": "pt"})
    assert command("+experiment=check", f"model={tmp_path / 'damaged'}", "engines=[]", f"out={tmp_path / 'page'}") == 1
    record = json.loads((tmp_path / "page" / "check.json").read_text())
    assert not record["sound"] and "NaN or Inf" in record["findings"][0]["text"]
    assert "Not sound: 1 problem" in (tmp_path / "page" / "check.html").read_text()


def test_a_patch_is_written_and_applied_by_the_command_line(merge, command, tmp_path):
    harc.swap_routers(merge["merged"], merge["sources"][0], tmp_path / "calibrated")
    patch = tmp_path / "p.safetensors"
    made = (f"calibrated={tmp_path / 'calibrated'}", f"merged={merge['merged']}", f"out={patch}")
    assert command("+experiment=patch", *made) == 0
    applied = (f"patch={patch}", f"model={merge['merged']}", f"out={tmp_path / 'again'}")
    assert command("+experiment=patch", *applied) == 0
    for file in (tmp_path / "calibrated").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+experiment=check"], "model: not given; python run.py +experiment=check"),
        (["+experiment=patch"], "calibrated, merged, out: not given"),
        (["+experiment=patch", "patch=x", "model=."], "x: No such file"),
        (["+experiment=doctor", "sources=[.]", "data=[x]"], "one source: a merge has two or more"),
        (["experiment.tool=dance"], "expected one of appendix_c1, calibrate, check, doctor, patch, table2"),
    ],
)
def test_what_is_missing_is_said_in_a_line(command, capsys, arguments, said):
    assert command(*arguments) == 1
    assert said in capsys.readouterr().err
