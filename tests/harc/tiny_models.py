"""Tiny random MoE checkpoints and text for the tests of streaming, calibration and diagnosis."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harc.tokens import TokenSequence

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
KINDS = {
    "olmoe": EXPERTS,
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 16, "head_dim": 8, "norm_topk_prob": True},
    "qwen2_moe": {
        **EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 2,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
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

EVERY_KIND = [kind if kind == "olmoe" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


def config_of(kind: str, **settings: object) -> AutoConfig:
    return AutoConfig.for_model(kind, **{**SIZES, **KINDS.get(kind, {}), **settings})


def random_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(kind, **settings), dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.5 if "gate.weight" in name else 0.2)
    return model


def family(
    kind: str, folder: Path, domains: int = 2, dtype: torch.dtype = torch.float32, **settings: object
) -> list[Path]:
    """A merged checkpoint and its sources: a random base, sources near it, and the sources' mean."""
    sources = [random_model(kind, 0, dtype, **settings) for _ in range(domains)]
    generator = torch.Generator().manual_seed(1)
    for model in sources:
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (0.3 * parameter.data.float().std().nan_to_num() * noise).to(dtype)
    merged = random_model(kind, 0, dtype, **settings)
    for parameter, *others in zip(merged.parameters(), *(model.parameters() for model in sources), strict=True):
        parameter.data = torch.stack([other.data.float() for other in others]).mean(0).to(dtype)
    paths = [folder / "merged", *(folder / f"source{index}" for index in range(domains))]
    for model, path in zip([merged, *sources], paths, strict=True):
        model.save_pretrained(path, max_shard_size="60KB")
    return paths


def text(count: int = 30, seed: int = 0, longest: int = 24, vocabulary: int = 64) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator).tolist()
    return [TokenSequence(torch.randint(3, vocabulary, (length,), generator=generator), 2) for length in lengths]
