"""What a router computes is found by running it; what is not shown to be softmax or sigmoid of W x is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import harc
from harc.models import probe as probing
from harc.models.architectures import tiny_model
from harc.models.probe import UnknownRouting, probe
from harc.models.routers import NoRouterError

EXPERTS, HIDDEN = 6, 10


class Router(nn.Module):
    """A router that makes weights of its logits by any function."""

    def __init__(self, scores, *, top_k=2, bend=lambda z: z, record=lambda z: z, normalise=True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(EXPERTS, HIDDEN))
        self.selection = nn.Parameter(torch.zeros(EXPERTS))
        self.scores, self.top_k, self.bend, self.record, self.normalise = scores, top_k, bend, record, normalise

    def forward(self, x):
        z = self.bend(x @ self.weight.T)
        scores = self.scores(z)
        chosen = (scores + self.selection).topk(self.top_k).indices
        weights = scores.gather(1, chosen)
        return self.record(z), weights / weights.sum(1, keepdim=True) if self.normalise else weights, chosen


class Block(nn.Module):
    """Experts, and a router that is handed the tokens."""

    def __init__(self, gate, *, returns=True) -> None:
        super().__init__()
        self.gate, self.returns = gate, returns
        self.down = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, HIDDEN))

    def forward(self, x):
        flat = x.reshape(-1, HIDDEN)
        z, weights, chosen = self.gate(flat)
        if not self.returns:
            weights = F.softmax(z, 1).gather(1, chosen)
        out = torch.stack([flat @ down.T for down in self.down], 1)
        return (out.gather(1, chosen[..., None].expand(-1, -1, HIDDEN)) * weights[..., None]).sum(1).view(x.shape)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_softmax_and_sigmoid_are_told_apart(name, top_k) -> None:
    function = {"softmax": lambda z: z.softmax(1), "sigmoid": torch.sigmoid}[name]
    found = probe(Block(Router(function, top_k=top_k, normalise=top_k > 1)), "gate", 0)
    assert (found.weight, found.bias, found.activation, found.top_k) == ("weight", None, name, top_k)
    assert not found.by_logits  # a selection bias takes part, and is no bias of the logits


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (Router(lambda z: F.softplus(z).sqrt()), "neither softmax nor sigmoid"),
        (Router(lambda z: (2 * z).softmax(1)), "neither softmax nor sigmoid"),
        (Router(torch.ones_like), "the same weight"),
        (Router(lambda z: z.softmax(1), top_k=1), "the same weight"),
        (Router(torch.tanh), "not positive"),
        (Router(torch.sigmoid, bend=lambda z: 2 * torch.tanh(z / 2)), "not W x"),
        (Router(lambda z: z.softmax(1), record=lambda z: z.softmax(1)), "records probabilities"),
        (Router(torch.sigmoid, bend=lambda z: z[:, :3].repeat(1, 2)), "not W x"),
    ],
)
def test_others_are_refused_by_what_they_do(router, message) -> None:
    with pytest.raises(UnknownRouting, match=message):
        probe(Block(router), "gate", 0)


KINDS = ("olmoe", "deepseek_v3", "gpt_oss", "dbrx", "jamba", "minimax_m2", "granitemoe", "mixtral", "hunyuan_v1_moe")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_router_returns_is_what_its_block_does(kind, monkeypatch) -> None:
    """The oracle: weights recovered from the block's output, expert by expert, show the same activation."""
    model = tiny_model(kind, device="meta")
    router = next(iter(harc.find_routers(model).values()))
    monkeypatch.setattr(probing, "_shares", lambda *_: (None, None))
    leaf = router.name.rpartition(".")[2]
    if router.by_logits:
        found = probe(model.get_submodule(router.moe_name), leaf, router.logits_index)
        assert found.activation == router.activation
    else:
        with pytest.raises(UnknownRouting, match="does not use the experts with the largest"):
            probe(model.get_submodule(router.moe_name), leaf, router.logits_index)


def test_one_expert_a_token() -> None:
    routers = harc.find_routers(tiny_model("llama4_text", device="meta", num_experts_per_tok=1))
    assert {(router.activation, router.top_k) for router in routers.values()} == {("sigmoid", 1)}


def test_a_bias_of_the_logits_is_found_and_one_that_selects_is_not() -> None:
    for kind, bias in (("gpt_oss", "bias"), ("deepseek_v3", None), ("laguna", None), ("afmoe", None)):
        routers = harc.find_routers(tiny_model(kind, device="meta"))
        assert {router.bias_name and router.bias_name.rpartition(".")[2] for router in routers.values()} == {bias}


def test_capped_logits_are_refused() -> None:
    with pytest.raises(NoRouterError, match="not W x"):
        harc.find_routers(tiny_model("laguna", device="meta", moe_router_logit_softcapping=5.0))


def test_probing_leaves_a_real_model_as_it_is() -> None:
    model = tiny_model("qwen3_moe")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    harc.find_routers(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
