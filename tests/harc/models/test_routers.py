"""Routers are found through transformers' declarations, with the published name of their weight."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import harc
from harc.models.architectures import tiny_model
from harc.models.routers import NoRouterError

SETTINGS = {"qwen2_moe": {"decoder_sparse_step": 2}}
MODELS = ("olmoe", "qwen3_moe", "qwen2_moe", "mixtral", "jamba", "deepseek_v3")


def model_of(kind: str, **settings: object) -> torch.nn.Module:
    return tiny_model(kind, device="meta", **{**SETTINGS.get(kind, {}), **settings})


@pytest.mark.parametrize("kind", MODELS)
def test_routers_of_known_architectures(kind: str) -> None:
    layers = {"qwen2_moe": [1], "deepseek_v3": [1, 2], "jamba": [1]}.get(kind, [0, 1, 2])
    module = {"jamba": "feed_forward.router"}.get(kind, "mlp.gate")
    key = {"mixtral": "block_sparse_moe.gate"}.get(kind, module)
    routers = harc.find_routers(model_of(kind))
    assert list(routers) == layers
    for layer, router in routers.items():
        assert router.layer == layer
        assert router.name == f"model.layers.{layer}.{module}"
        assert router.checkpoint_key == f"model.layers.{layer}.{key}.weight"
        assert router.moe_name == f"model.layers.{layer}.{module.split('.')[0]}"
        assert tuple(router.weight.shape) == (8, 32)
        assert router.top_k == 2
        assert router.activation == ("sigmoid" if kind == "deepseek_v3" else "softmax")


def test_published_key_is_what_transformers_writes(tmp_path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    written = harc.checkpoint.open_checkpoint(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for router in harc.find_routers(loaded).values():
        assert torch.equal(written.read(router.checkpoint_key), router.weight)


def test_dense_model_has_no_router() -> None:
    with pytest.raises(NoRouterError, match="LlamaForCausalLM is not a Mixture-of-Experts model"):
        harc.find_routers(model_of("llama"))


def test_moe_class_with_dense_layers_only() -> None:
    with pytest.raises(NoRouterError, match="none"):
        harc.find_routers(model_of("qwen2_moe", decoder_sparse_step=10))
