"""Routers are found through transformers' declarations, with the published name of their weight."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import harc
from harc.routers import NoRouterError

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
MODELS = {
    "olmoe": EXPERTS,
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 16, "head_dim": 8},
    "qwen2_moe": {
        **EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 2,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "jamba": {"num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "qk_nope_head_dim": 8,
        "num_key_value_heads": 4,
    },
}


def model_of(kind: str, **settings: object) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{**TINY, **MODELS.get(kind, {}), **settings})
        )


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
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **TINY, **MODELS["mixtral"]))
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


def test_router_with_bias_is_refused() -> None:
    with pytest.raises(NoRouterError, match="bias"):
        harc.find_routers(model_of("gpt_oss", num_local_experts=8, head_dim=8))
