"""target=source_inputs: the sources run in lockstep, and what they route on their own hidden states is the target."""

import re

import pytest
import torch

import harc
from harc.calibration.text import divide
from harc.checkpoint import open_checkpoint
from harc.measures import routing_kl
from tests.harc.calibration.test_calibrate import assert_written, put, router_inputs, weight_of, whole, with_ones
from tests.harc.calibration.test_resume import assert_same, counting, killed_after
from tests.harc.tiny_models import EVERY_KIND, family, random_model, text

OPTIONS = {"target": "source_inputs", "progress": False}


def plain_calibration(paths, data, **options):
    """Whole models in memory, sequence by sequence; the guard in float64. The model, and which layers were kept."""
    model, sources, kept = whole(paths[0]), [whole(path) for path in paths[1:]], []
    parts = [divide(sequences) for sequences in data]
    of_sources = [harc.find_routers(source) for source in sources]
    for layer, router in harc.find_routers(model).items():
        own = [weight_of(routers[layer]) for routers in of_sources]
        (x, z), (held, held_z) = (
            (
                [with_ones(router, router_inputs(model, router, part[which])) for part in parts],
                [
                    with_ones(router, router_inputs(source, routers[layer], part[which])) @ w.T
                    for source, routers, w, part in zip(sources, of_sources, own, parts, strict=True)
                ],
            )
            for which in (0, 1)
        )
        start = weight_of(router)
        fitted = harc.solve_router(x, own, z, init=start, activation=router.activation, tol=1e-9, **options).weight

        def held_out(w, held=held, held_z=held_z, activation=router.activation):
            pairs = zip(held, held_z, strict=True)
            return sum(routing_kl(z.double(), x.double() @ w.double().T, activation).mean() for x, z in pairs)

        kept.append(bool(held_out(fitted) >= held_out(start)))
        put(router, start if kept[-1] else fitted)
    return model, kept


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equals_plain_calibration(kind, tmp_path) -> None:
    paths, data = family(kind, tmp_path), [text(60, seed=0), text(60, seed=1)]
    options = {"tol": 1e-9, "tokens_per_batch": 100, "dtype": torch.float64, **OPTIONS}
    report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", **options)
    expected, kept = plain_calibration(paths, data)
    assert [layer.kept for layer in report.layers] == kept
    assert_written(tmp_path / "out", expected)
    assert report.settings["target"] == "source_inputs"
    for layer in report.layers:
        assert layer.kept or layer.held_out_kl["0.9"] < layer.held_out_kl["start"]


@pytest.mark.parametrize("options", [{"objective": "kl"}, {"alpha": "auto"}, {"hessian": "identity"}], ids=str)
def test_routes_more_like_its_sources_than_the_papers_target(options, tmp_path) -> None:
    """On the text calibrated on, end to end through whole models."""
    paths, data = family("olmoe", tmp_path), [text(200, seed=0), text(200, seed=1)]
    kl = {}
    for target in ("merged_inputs", "source_inputs"):
        out = tmp_path / target
        report = harc.calibrate(paths[0], paths[1:], data, out=out, **{**OPTIONS, "target": target}, **options)
        assert report.converged
        kl[target] = sum(sum(values) for values in harc.diagnose(out, paths[1:], data).kl.values())
    assert kl["source_inputs"] < kl["merged_inputs"]


def test_a_merge_of_one_source_stays_as_it_is(tmp_path) -> None:
    """The merged model is the source: its targets are what it routes, and nothing can be better."""
    paths, data = family("olmoe", tmp_path), [text(60, seed=0)]
    harc.calibrate(paths[1], [paths[1]], data, out=tmp_path / "out", **OPTIONS)
    before, after = open_checkpoint(paths[1]), open_checkpoint(tmp_path / "out")
    for name in before:
        torch.testing.assert_close(after.read(name), before.read(name), rtol=1e-5, atol=1e-5)


def test_only_the_last_layers(tmp_path) -> None:
    """Sources are forwarded through the layers before, too."""
    paths, data = family("olmoe", tmp_path), [text(60, seed=0), text(60, seed=1)]
    report = harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", layers=1, tol=1e-9, **OPTIONS)
    assert [layer.layer for layer in report.layers] == [2]
    parts = [divide(sequences)[0] for sequences in data]
    model, sources = whole(paths[0]), [whole(path) for path in paths[1:]]
    router, of_sources = harc.find_routers(model)[2], [harc.find_routers(source)[2] for source in sources]
    x = [router_inputs(model, router, part) for part in parts]
    own = [router.weight.data for router in of_sources]
    z = [
        router_inputs(source, router, part) @ router.weight.data.T
        for source, router, part in zip(sources, of_sources, parts, strict=True)
    ]
    expected = harc.solve_router(x, own, z, init=router.weight.data, tol=1e-9).weight
    written = open_checkpoint(tmp_path / "out").read(router.checkpoint_key)
    assert (written - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("worth", [0.0, float("inf")], ids=["states kept", "states not kept"])
def test_killed_calibration_resumes(worth, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("harc.calibration.resume._WORTH", worth)
    arguments = killed_after(monkeypatch, 2, tmp_path, target="source_inputs")
    kept = list((tmp_path / "state").glob("states-*/*.bin"))
    assert len(kept) == (4 if worth == 0 else 0)  # the merged model's and the source's, of two domains
    harc.calibrate(*arguments, out=tmp_path / "whole", **OPTIONS)
    solved, _ = counting(monkeypatch)
    harc.calibrate(*arguments, out=tmp_path / "out", resume=tmp_path / "state", **OPTIONS)
    assert len(solved) == 1
    assert_same(tmp_path)


def test_another_target_does_not_resume(tmp_path, monkeypatch) -> None:
    arguments = killed_after(monkeypatch, 1, tmp_path)
    solved, _ = counting(monkeypatch)
    harc.calibrate(*arguments, out=tmp_path / "out", resume=tmp_path / "state", **OPTIONS)
    assert len(solved) == 3


def test_a_memory_budget_gives_the_same_routers(tmp_path, monkeypatch) -> None:
    paths, data = family("olmoe", tmp_path), [text(seed=0), text(seed=1)]
    with pytest.raises(ValueError, match="memory_budget_gb is 1e-07") as refused:
        harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "out", memory_budget_gb=1e-7, **OPTIONS)
    least = float(re.search(r"needs at least ([\d.e-]+)", str(refused.value))[1]) * 1.01
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "memory", **OPTIONS)
    mapped = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **options: mapped.append(1) or from_file(*args, **options))
    harc.calibrate(paths[0], paths[1:], data, out=tmp_path / "mapped", memory_budget_gb=least, **OPTIONS)
    assert len(mapped) >= 6  # of two domains: hidden states of two models, router inputs; target logits where too large
    memory, files = (open_checkpoint(tmp_path / name) for name in ("memory", "mapped"))
    assert all(torch.equal(memory.read(name), files.read(name)) for name in memory)


def test_a_source_of_fewer_tokens_is_refused_before_any_work(tmp_path) -> None:
    paths = family("olmoe", tmp_path)
    small = tmp_path / "small"
    random_model("olmoe", vocab_size=50).save_pretrained(small)
    data = [text(200, seed=0), text(200, seed=1)]
    with pytest.raises(ValueError, match=r"domain 1: token id 6\d; .*small has 50 tokens"):
        harc.calibrate(paths[0], [paths[1], small], data, out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()
