"""A repair that is killed goes on at its first unfinished layer, with the same result."""

import signal
import subprocess
import sys

import pytest
import torch

import harc
import harc.calibration.resume
from harc.checkpoint import open_checkpoint
from harc.repairing import driver
from tests.harc.tiny_models import family, text
from tests.places import ROOT

OPTIONS = {"min_tokens": 1, "progress": False}
WORKER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tests.harc.tiny_models import text
import harc, harc.calibration.resume

calls, plain, name = [], harc.calibration.resume.replace_file, "replace_file"
def dies(*args):
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)
harc.calibration.resume._WORTH = {worth}
harc.calibration.resume.replace_file = dies
folder = {folder!r}
paths = [f"{{folder}}/{{name}}" for name in ("merged", "source0", "source1")]
data = [text(9, seed=0), text(6, seed=1)]
harc.repair(paths[0], paths[1:], data, out=f"{{folder}}/out", resume=f"{{folder}}/state", min_tokens=1, progress=False)
"""


@pytest.mark.parametrize("worth", ["0.0", "float('inf')"], ids=["states kept", "states not kept"])
def test_kill_9_in_the_last_layer(worth, tmp_path, monkeypatch) -> None:
    """Written before: the fingerprint; of a layer its tensors, its record and the note of its states, where kept."""
    paths, data = family("olmoe", tmp_path), [text(9, seed=0), text(6, seed=1)]
    count = 8 if worth == "0.0" else 6
    worker = WORKER.format(tests=str(ROOT), count=count, worth=worth, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", worker], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "state").glob("layer-*.json")) == ["layer-0.json", "layer-1.json"]
    harc.repair(paths[0], paths[1:], data, out=tmp_path / "whole", **OPTIONS)
    repaired = []
    plain = driver.LayerRepair.run
    monkeypatch.setattr(driver.LayerRepair, "run", lambda self: (repaired.append(self._layer), plain(self)))
    report = harc.repair(paths[0], paths[1:], data, out=tmp_path / "out", resume=tmp_path / "state", **OPTIONS)
    assert repaired == [2]
    assert [layer.layer for layer in report.layers] == [0, 1, 2]
    assert not (tmp_path / "state").exists()
    expected, found = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "out")
    for name in expected:
        if worth == "0.0":
            assert torch.equal(expected.read(name), found.read(name)), name
        else:  # a layer forwarded whole rounds otherwise than in halves
            assert (expected.read(name) - found.read(name)).norm() < 1e-3 * expected.read(name).norm(), name


def test_nothing_is_left_beside_the_output(tmp_path) -> None:
    paths = family("olmoe", tmp_path, num_hidden_layers=1)
    harc.repair(paths[0], paths[1:], [text(9, seed=0), text(6, seed=1)], out=tmp_path / "out", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "out", "source0", "source1"]
