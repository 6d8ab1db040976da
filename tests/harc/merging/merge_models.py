"""Tiny random MoE models of four architectures, saved as checkpoints in the published layout."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from harc.tokens import TokenSequence

COMMON = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "olmoe": OlmoeConfig(**COMMON, intermediate_size=12, num_experts=4),
    "mixtral": MixtralConfig(**COMMON, intermediate_size=12, num_local_experts=4, sliding_window=6),
    "qwen2_moe": Qwen2MoeConfig(
        **COMMON,
        intermediate_size=20,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=10,
        num_experts=4,
        mlp_only_layers=[0],
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **COMMON,
        head_dim=8,
        intermediate_size=20,
        moe_intermediate_size=12,
        num_experts=4,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
}


def save_model(
    folder: Path,
    architecture: str = "olmoe",
    *,
    seed: int = 0,
    near: Path | None = None,
    dtype: torch.dtype = torch.float32,
    **save: object,
) -> Path:
    """A random model; `near`: its weights are those of that checkpoint plus small random steps, as of a fine-tune."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(near) if near else CONFIGS[architecture]
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        origin = load_state(near) if near else None
        for name, parameter in model.named_parameters():
            if origin is not None:
                step = 0.02 * torch.randn_like(parameter, dtype=torch.float32)
                parameter.copy_(origin[name].float() + step)
            else:
                parameter.normal_(std=0.3 if parameter.dim() > 1 else 0.1).add_(parameter.dim() == 1)
    model.save_pretrained(folder, **save)
    return folder


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint as transformers loads them."""
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


def sequences(count: int, seed: int = 0, *, shortest: int = 5, longest: int = 14) -> list[TokenSequence]:
    """Random token sequences of different lengths, each with a response."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [TokenSequence(torch.randint(3, 61, (length,), generator=generator), length // 2) for length in lengths]


def recorded_inputs(model: PreTrainedModel, data: list[TokenSequence]) -> dict[str, list[torch.Tensor]]:
    """The inputs of every linear weight, by parameter name (one a fused expert), a model run on unpadded sequences."""
    seen: dict[str, list[list[torch.Tensor]]] = {}
    model.set_experts_implementation("eager")

    def record(name, module):
        def hook(_, args):
            rows = args[0].reshape(-1, args[0].shape[-1])
            seen.setdefault(name, [[]])[0].append(rows)

        module.register_forward_pre_hook(hook)

    def record_experts(path, module):
        def hook(_, args):
            hidden, chosen, _weights = args
            for expert in range(module.num_experts):
                rows = hidden[(chosen == expert).any(dim=1)]
                gate, up = (rows @ module.gate_up_proj[expert].mT).chunk(2, dim=-1)
                for name, value in (("gate_up_proj", rows), ("down_proj", module.act_fn(gate) * up)):
                    seen.setdefault(f"{path}.{name}", [[] for _ in range(module.num_experts)])[expert].append(value)

        module.register_forward_pre_hook(hook)

    tied = model.config.tie_word_embeddings
    for path, module in model.named_modules():
        if path.endswith("experts"):
            record_experts(path, module)
        elif (isinstance(module, torch.nn.Linear) or path.endswith("mlp.gate")) and not (path == "lm_head" and tied):
            record(f"{path}.weight", module)
    with torch.no_grad():
        for sequence in data:
            model(sequence.ids[None])
    return {name: [torch.cat(rows) for rows in parts] for name, parts in seen.items()}
