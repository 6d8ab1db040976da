"""docs/architectures.md is what the installed transformers does: nothing supported is lost, and what it lists works."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.checkpoint import open_checkpoint
from harc.models.architectures import PAGE, architectures_page, moe_types, tiny_model, try_architecture
from harc.models.routers import NoRouterError
from tests.harc.tiny_models import text


def listed() -> tuple[list[str], list[str]]:
    """The model types that the committed page calls supported, and those it calls refused."""
    supported, refused = PAGE.read_text(encoding="utf-8").split("## Refused")
    return tuple(re.findall(r"^\| (\w+) \|", part, re.M) for part in (supported, refused))  # type: ignore[return-value]


SUPPORTED, REFUSED = ([name for name in names if name != "model"] for names in listed())


def test_the_page_lists_every_moe_of_this_transformers() -> None:
    assert sorted([*SUPPORTED, *REFUSED]) == list(moe_types())
    assert len(SUPPORTED) >= 43


def test_routers_of_all_supported_types_are_found() -> None:
    for name in SUPPORTED:
        assert harc.find_routers(tiny_model(name, device="meta")), name


@pytest.mark.slow
def test_the_committed_page_is_the_generated_one() -> None:
    assert architectures_page([try_architecture(name) for name in moe_types()]) == PAGE.read_text(encoding="utf-8")


def models(kind: str, folder: Path) -> list[Path]:
    """A random base and two models near it."""
    torch.manual_seed(0)
    base = tiny_model(kind)
    for name, parameter in base.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.5 if "gate.weight" in name or "router" in name else 0.2)
    start = {name: parameter.data.clone() for name, parameter in base.named_parameters()}
    paths = [folder / name for name in ("base", "source0", "source1")]
    base.save_pretrained(paths[0])
    for path in paths[1:]:
        for name, parameter in base.named_parameters():
            parameter.data = start[name] + 0.3 * start[name].std().nan_to_num() * torch.randn_like(start[name])
        base.save_pretrained(path)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SUPPORTED, *REFUSED])
def test_merge_diagnose_and_calibrate(kind, tmp_path) -> None:
    base, *sources = models(kind, tmp_path)
    merged, out = tmp_path / "merged", tmp_path / "out"
    harc.merge("task_arithmetic", sources, base, merged, scale=0.5, progress=False)
    data = [text(8, seed) for seed in (0, 1)]
    if kind in REFUSED:
        with pytest.raises(NoRouterError):
            harc.calibrate(merged, sources, data, out=out, progress=False)
        return
    report = harc.calibrate(merged, sources, data, out=out, progress=False)
    assert report.converged
    assert all(layer.kl_after < layer.kl_before for layer in report.layers)
    before, after = (harc.diagnose(model, sources, data) for model in (merged, out))
    first = [(sum(kl[0] for kl in routing.kl.values())) for routing in (before, after)]
    assert first[1] < first[0]
    old, new = open_checkpoint(merged), open_checkpoint(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    keys = {key for router in harc.find_routers(model).values() for key in router.keys}
    assert {name for name in old if not torch.equal(old.read(name), new.read(name))} == keys
