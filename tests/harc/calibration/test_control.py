"""Negative controls: a random change has the norm of HARC's in each layer; swapped is HARC with the sources swapped."""

import pytest
import torch

import harc
from harc.calibration.control import random_change
from harc.checkpoint import open_checkpoint
from tests.harc.tiny_models import family, text


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return family("olmoe", tmp_path_factory.mktemp("family"))


def routers(path):
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name).double() for name in checkpoint if name.endswith("mlp.gate.weight")}


def calibrated(paths, sources, out, **options):
    harc.calibrate(paths[0], sources, [text(seed=0), text(seed=1)], out=out, progress=False, **options)
    return routers(out)


def test_a_random_change_has_each_layers_norm_and_no_direction_of_the_calibration(paths, tmp_path) -> None:
    merged = routers(paths[0])
    fitted = calibrated(paths, paths[1:], tmp_path / "harc")
    written = calibrated(paths, paths[1:], tmp_path / "random", control="random")
    assert written.keys() == fitted.keys()
    for name, before in merged.items():
        wanted, drawn = fitted[name] - before, written[name] - before
        assert float(drawn.norm()) == pytest.approx(float(wanted.norm()), rel=1e-5)  # float32 as stored
        # Of independent directions in n dimensions the cosine has a standard deviation of 1 / √n.
        assert abs((wanted * drawn).sum() / wanted.norm() / drawn.norm()) < 5 / before.numel() ** 0.5


def test_a_random_change_is_the_same_for_the_same_router_and_another_for_another() -> None:
    one, other = torch.randn(4, 8), torch.randn(4, 8)
    drawn = random_change(one, one + 1) - one
    assert torch.equal(random_change(one, one + 1) - one, drawn)
    assert not torch.allclose(random_change(other, other + 1) - other, drawn, atol=0.1)


def test_a_random_change_keeps_the_dtype_and_nothing_changes_where_calibration_changes_nothing() -> None:
    router = torch.randn(4, 8, dtype=torch.bfloat16)
    assert torch.equal(random_change(router, router), router)


@pytest.mark.parametrize("target", ["merged_inputs", "source_inputs"])
def test_swapped_is_calibration_with_the_sources_in_each_others_places(paths, tmp_path, target) -> None:
    swapped = calibrated(paths, paths[1:], tmp_path / "swapped", control="swapped", target=target)
    expected = calibrated(paths, [paths[2], paths[1]], tmp_path / "other", target=target)
    assert all(torch.equal(swapped[name], expected[name]) for name in expected)


def test_domains_are_not_swapped_with_one_source(paths, tmp_path) -> None:
    with pytest.raises(ValueError, match="control=swapped swaps domains: at least two sources are needed, found 1"):
        harc.calibrate(paths[0], paths[1:2], [text(seed=0)], out=tmp_path / "out", control="swapped")
