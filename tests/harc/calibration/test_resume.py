"""A calibration that is killed goes on at its first unfinished layer, with the same result."""

import logging
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import harc
import harc.calibration.resume
from harc.checkpoint import open_checkpoint
from harc.models.hidden_states import HiddenStates
from tests.harc.tiny_models import family, text
from tests.places import ROOT


class Killed(BaseException):
    pass


def counting(monkeypatch, stop_at=None):
    """Counts solves and forwarded layers; dies before a solve."""
    module = import_module("harc.calibration.driver")  # harc.calibration.driver is the function
    solved: list[int] = []
    forwarded: list[int] = []
    fit, forward = module.fit_router, HiddenStates.forward

    def fit_router(*args, **options):
        if len(solved) == stop_at:
            raise Killed
        solved.append(1)
        return fit(*args, **options)

    def counted(self, layer):
        forwarded.append(layer)
        return forward(self, layer)

    monkeypatch.setattr(module, "fit_router", fit_router)
    monkeypatch.setattr(HiddenStates, "forward", counted)
    return solved, forwarded


def killed_after(monkeypatch, solves, tmp_path, **options):
    """Two sources' checkpoints and text, and a calibration of them that died after some solves."""
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    arguments = (paths[0], paths[1:], data)
    with monkeypatch.context() as patch:
        counting(patch, stop_at=solves)
        with pytest.raises(Killed):
            harc.calibrate(*arguments, out=tmp_path / "out", resume=tmp_path / "state", progress=False, **options)
    assert not (tmp_path / "out").exists()
    return arguments


def assert_same(tmp_path) -> None:
    expected, found = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "out")
    for name in expected:
        assert torch.allclose(expected.read(name), found.read(name), atol=1e-4), name


@pytest.mark.parametrize("worth", [0.0, float("inf")], ids=["states kept", "states not kept"])
@pytest.mark.parametrize("alpha", [0.9, "auto"])
def test_killed_calibration_resumes(alpha, worth, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(harc.calibration.resume, "_WORTH", worth)
    options = {"alpha": alpha, "progress": False}
    arguments = killed_after(monkeypatch, 2, tmp_path, alpha=alpha)
    assert len(list((tmp_path / "state").glob("states-*"))) == (worth == 0)
    whole = harc.calibrate(*arguments, out=tmp_path / "whole", **options)
    solved, forwarded = counting(monkeypatch)
    report = harc.calibrate(*arguments, out=tmp_path / "out", resume=tmp_path / "state", **options)
    assert len(solved) == 1
    assert forwarded == ([] if worth == 0 else [0, 0, 1, 1])  # of two domains
    assert not (tmp_path / "state").exists()
    assert [layer.layer for layer in report.layers] == [0, 1, 2]
    assert [layer.kl_after for layer in report.layers] == pytest.approx(
        [layer.kl_after for layer in whole.layers], rel=1e-4
    )
    assert_same(tmp_path)


def test_other_settings_do_not_resume(tmp_path, monkeypatch) -> None:
    arguments = killed_after(monkeypatch, 1, tmp_path)
    solved, _ = counting(monkeypatch)
    harc.calibrate(*arguments, out=tmp_path / "out", resume=tmp_path / "state", alpha=0.5, progress=False)
    assert len(solved) == 3


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "damage", "solves"),
    [
        ("layer-1.safetensors", cut, 2),
        ("layer-0.safetensors", flip, 3),
        ("layer-1.json", cut, 2),
        ("calibration.json", cut, 3),
        ("states-1/1.bin", cut, 1),
        ("states-1/0.bin", flip, 1),
        ("states-1/states.json", cut, 1),
    ],
)
def test_damaged_files_are_named_and_made_again(damaged, damage, solves, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(harc.calibration.resume, "_WORTH", 0.0)
    arguments = killed_after(monkeypatch, 2, tmp_path)
    harc.calibrate(*arguments, out=tmp_path / "whole", progress=False)
    damage(tmp_path / "state" / damaged)
    solved, _ = counting(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="harc.calibration.resume"):
        harc.calibrate(*arguments, out=tmp_path / "out", resume=tmp_path / "state", progress=False)
    folder_or_file = damaged.split("/")[0] if "bin" in damaged else damaged
    assert f"{tmp_path / 'state' / folder_or_file}: damaged" in caplog.text
    assert len(solved) == solves
    assert_same(tmp_path)


WORKER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tests.harc.tiny_models import text
import harc, harc.calibration.resume

calls, plain, name = [], harc.calibration.resume.{place}, {place!r}
def dies(*args):
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)
harc.calibration.resume._WORTH = 0.0
harc.calibration.resume.{place} = dies
folder = {folder!r}
paths = [f"{{folder}}/{{name}}" for name in ("merged", "source0", "source1")]
data = [text(seed=0), text(seed=1)]
harc.calibrate(paths[0], paths[1:], data, out=f"{{folder}}/out", resume=f"{{folder}}/state", progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "count", "solves"),
    [("_write_tensor", 4, 1), ("replace_file", 4, 2), ("replace_file", 2, 3)],
    ids=["writing the second layer's states", "writing the first layer's states", "writing the first router"],
)
def test_kill_9_in_the_middle(place, count, solves, tmp_path, monkeypatch) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    worker = WORKER.format(tests=str(ROOT), place=place, count=count, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", worker], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "state" / "calibration.json").is_file()
    assert not (tmp_path / "out").exists()
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "whole", progress=False)
    solved, _ = counting(monkeypatch)
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", resume=tmp_path / "state", progress=False)
    assert len(solved) == solves
    assert_same(tmp_path)
