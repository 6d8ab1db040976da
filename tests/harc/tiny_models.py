"""Tiny random MoE checkpoints and text for the tests of streaming, calibration and diagnosis."""

from pathlib import Path

import pytest
import torch

from harc.models.architectures import tiny_model
from harc.tokens import TokenSequence

KINDS: dict[str, dict[str, object]] = {
    "olmoe": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "mixtral": {},
    "deepseek_v3": {},
    "gpt_oss": {},
}

EVERY_KIND = [kind if kind == "olmoe" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


def random_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object):
    torch.manual_seed(seed)
    model = tiny_model(kind, dtype=dtype, **{**KINDS.get(kind, {}), **settings})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            router = "gate.weight" in name or "router" in name
            parameter.data.normal_(std=0.5 if router else 0.2)
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
