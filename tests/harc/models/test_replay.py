"""Replayed decisions against a forward pass by hand over the whole text, without a cache."""

import contextlib

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import harc
from harc.models.routers import find_routers

SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "pad_token_id": 0, "eos_token_id": None,
    "bos_token_id": None, "initializer_range": 0.5, "output_router_logits": False,
}  # fmt: skip


def made(seed: int, kind: str = "olmoe", **settings) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **settings})).eval()


@torch.no_grad()
def routed_by_hand(model: PreTrainedModel, source: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The model's logits with the router outputs that the source has on the same text."""
    seen = []
    taps = [
        one.module.register_forward_hook(lambda _, __, out: seen.append(out)) for one in find_routers(source).values()
    ]
    source(ids, use_cache=False)
    taps += [one.module.register_forward_hook(lambda *_: seen.pop(0)) for one in find_routers(model).values()]
    logits = model(ids, use_cache=False).logits
    for tap in taps:
        tap.remove()
    return logits


@pytest.mark.parametrize("kind", ["olmoe", "mixtral"])
def test_generation_follows_the_sources_decisions_token_by_token(kind):
    settings = {"num_local_experts": 8} if kind == "mixtral" else {}
    model, source = made(0, kind, **settings), made(1, kind, **settings)
    prompt = torch.tensor([[5, 9, 13, 2], [7, 3, 3, 21]])
    expected = prompt
    for _ in range(12):
        following = routed_by_hand(model, source, expected)[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    alone = model.generate(prompt, do_sample=False, max_new_tokens=12)
    with harc.replay_decisions(model, source):
        for _ in range(2):  # a second text begins with a cache of its own
            routed = model.generate(prompt, do_sample=False, max_new_tokens=12)
            assert torch.equal(routed, expected)
    assert not torch.equal(routed, alone)
    assert torch.equal(model.generate(prompt, do_sample=False, max_new_tokens=12), alone)


def test_a_models_own_decisions_change_nothing():
    model, same = made(0), made(0)
    ids, mask = torch.tensor([[0, 5, 9, 13], [7, 3, 3, 21]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    plain = model(ids, attention_mask=mask).logits
    with harc.replay_decisions(model, same):
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, plain)


@pytest.mark.parametrize(("layers", "message"), [(2, "routers in layers"), (3, None)])
def test_models_that_do_not_fit_are_refused(layers, message):
    source = made(1, num_hidden_layers=layers)
    expected = pytest.raises(harc.models.routers.NoRouterError, match=message) if message else contextlib.nullcontext()
    with expected, harc.replay_decisions(made(0), source):
        pass


def test_embeddings_in_place_of_tokens_are_refused():
    model = made(0)
    with harc.replay_decisions(model, made(1)), pytest.raises(ValueError, match="takes input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
