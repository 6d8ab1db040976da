"""Hidden states in memory or in mapped files; the next block is fetched while the current one is in use."""

import threading

import pytest
import torch

from harc.models.hidden_states import HiddenStates
from harc.models.store import Store, Transfer
from harc.models.streaming import LayerStream
from tests.harc.tiny_models import random_model, text


def test_store_maps_files_beyond_its_budget(tmp_path) -> None:
    store = Store(budget_gb=1e-6, folder=tmp_path)
    inside, beyond = store.empty(10, 10, torch.float32), store.empty(100, 10, torch.bfloat16)
    beyond.fill_(2)
    assert inside.shape == (10, 10)
    assert beyond.dtype == torch.bfloat16
    assert float(beyond.float().sum()) == 2000
    assert list(tmp_path.iterdir()) == []


def test_the_next_block_is_fetched_while_the_current_one_is_in_use() -> None:
    begun = [threading.Event() for _ in range(4)]
    threads = set()

    def fetch(item: int) -> torch.Tensor:
        begun[item].set()
        threads.add(threading.get_ident())
        return torch.full((2,), float(item))

    out = torch.zeros(4, 2)
    for item, block, write in Transfer(torch.device("cpu")).blocks(range(4), fetch):
        if item < 3:
            assert begun[item + 1].wait(timeout=30)  # it would not begin before this block is given back
        assert not any(event.is_set() for event in begun[item + 2 :])  # one ahead: memory holds two blocks
        write(out[item].copy_, block + 1)
    assert out[:, 0].tolist() == [1, 2, 3, 4]
    assert threads and threading.get_ident() not in threads


@pytest.mark.parametrize("where", ["fetch", "store"])
def test_what_fails_in_the_thread_fails_in_the_loop(where) -> None:
    def fetch(item: int) -> torch.Tensor:
        if where == "fetch" and item == 1:
            raise OSError("disk gone")
        return torch.ones(1)

    def store(_: torch.Tensor) -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        for _, block, write in Transfer(torch.device("cpu")).blocks(range(2), fetch):
            if where == "store":
                write(store, block)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: page-locked memory and copies beside its work")
def test_a_gpu_gives_what_the_cpu_gives(tmp_path) -> None:
    random_model("olmoe").save_pretrained(tmp_path)
    values = {}
    for device in ("cpu", "cuda"):
        stream = LayerStream(tmp_path, device=device)
        state = HiddenStates(stream, text(count=9), 64, Store(pinned=device == "cuda"))
        with stream.loaded(None):
            state.embed()
        for layer in range(stream.layers):
            split = state.splits(layer)
            with stream.loaded(layer):
                state.complete(layer, state.router_inputs(layer, split), split)
        values[device] = state.values
    assert values["cuda"].is_pinned()
    assert (values["cuda"] - values["cpu"]).norm() / values["cpu"].norm() < 1e-4
