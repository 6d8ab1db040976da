"""A calibration that is killed resumes at its first unfinished layer, with the same result."""

import pytest
import torch
from tiny_models import family, text

import harc
from harc import calibrate as _  # noqa: F401  (the module is imported before its functions are replaced)
from harc.checkpoint import open_checkpoint


class Killed(BaseException):
    pass


def counting(monkeypatch, stop_at=None):
    import sys

    module = sys.modules["harc.calibrate"]
    solved = []
    fit = module.fit_router

    def fit_router(*args, **options):
        if len(solved) == stop_at:
            raise Killed
        solved.append(1)
        return fit(*args, **options)

    monkeypatch.setattr(module, "fit_router", fit_router)
    return solved


@pytest.mark.parametrize("alpha", [0.9, "auto"])
def test_killed_calibration_resumes(alpha, tmp_path, monkeypatch) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    options = {"alpha": alpha, "progress": False}
    whole = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        counting(patch, stop_at=2)
        with pytest.raises(Killed):
            harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", resume=tmp_path / "state", **options)
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        solved = counting(patch)
        report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", resume=tmp_path / "state", **options)
    assert len(solved) == 1
    assert not (tmp_path / "state").exists()
    assert [layer.kl_after for layer in report.layers] == pytest.approx(
        [layer.kl_after for layer in whole.layers], rel=1e-4
    )
    expected, found = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "out")
    for name in expected:
        assert torch.allclose(expected.read(name), found.read(name), atol=1e-4)


def test_other_settings_do_not_resume(tmp_path, monkeypatch) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    with monkeypatch.context() as patch:
        counting(patch, stop_at=1)
        with pytest.raises(Killed):
            harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", resume=tmp_path / "state", progress=False)
    solved = counting(monkeypatch)
    harc.calibrate(
        paths[0], paths[1:], data, out=tmp_path / "out", resume=tmp_path / "state", alpha=0.5, progress=False
    )
    assert len(solved) == 3
