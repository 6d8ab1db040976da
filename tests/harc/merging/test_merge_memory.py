"""A merge that memory has no room for is refused before it reads a tensor; one on data maps what does not fit."""

import re

import pytest
import torch

import harc
from harc.checkpoint import open_checkpoint
from tests.harc.merging.merge_models import save_model, sequences


@pytest.fixture
def sources(tmp_path):
    base = save_model(tmp_path / "base")
    return [save_model(tmp_path / str(seed), near=base, seed=seed) for seed in (1, 2)]


@pytest.mark.parametrize("method", ["average", "regmean"])
def test_too_small_a_budget_is_refused_with_what_is_needed(tmp_path, sources, method):
    data = [sequences(6, 1), sequences(5, 2)] if method == "regmean" else None
    with pytest.raises(ValueError, match=r"memory_budget_gb is 1e-06: merging 2 models .* makes it fit"):
        harc.merge(method, sources, None, tmp_path / "out", data=data, memory_budget_gb=1e-6, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["regmean", "regmean_plus"])
def test_mapped_hidden_states_give_the_same_merge(tmp_path, sources, method, monkeypatch):
    data = [sequences(6, 1), sequences(5, 2)]

    def merged(name: str, budget: float | None):
        harc.merge(method, sources, None, tmp_path / name, data=data, memory_budget_gb=budget, progress=False)
        return open_checkpoint(tmp_path / name)

    with pytest.raises(ValueError) as refused:
        merged("refused", 1e-6)
    least = float(re.search(r"needs about ([\d.e-]+)", str(refused.value))[1]) * 1.001
    mapped = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **options: mapped.append(1) or from_file(*args, **options))
    memory = merged("memory", None)
    assert not mapped
    files = merged("mapped", least)
    assert mapped and all(torch.equal(memory.read(name), files.read(name)) for name in memory)
