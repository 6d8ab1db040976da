"""Every Mixture-of-Experts causal language model of the installed transformers, each tried as a tiny random model.

They are found by what their classes declare, so that a new release's are found as well, and made from their own
configuration class with small sizes. `python -m harc.models.architectures` writes docs/architectures.md.
"""

import inspect
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from harc.models.hidden_states import HiddenStates
from harc.models.routers import NoRouterError, Router, find_routers
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.tokens import TokenSequence

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

# What a field of that name is in any configuration.
_VALUES: dict[Any, str] = {
    0: "pad_token_id",
    1: "bos_token_id topk_group first_k_dense_replace num_dense_layers n_groups",
    2: "eos_token_id num_experts_per_tok moe_topk moe_top_k moe_k top_k_experts num_experts_per_token n_group "
    "zero_expert_num num_key_value_heads swa_num_key_value_heads linear_num_key_heads",
    3: "num_hidden_layers n_layers num_layers",
    4: "num_attention_heads n_heads num_heads linear_num_heads linear_num_value_heads index_n_heads mamba_num_heads "
    "swa_num_attention_heads",
    8: "num_experts n_routed_experts num_local_experts moe_num_experts head_dim global_head_dim swa_head_dim "
    "kv_channels linear_head_dim linear_key_head_dim linear_value_head_dim mamba_head_dim qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim hidden_size_per_layer_input",
    16: "moe_intermediate_size expert_intermediate_size dense_intermediate_size shared_intermediate_size "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size kv_lora_rank q_lora_rank o_lora_rank "
    "index_head_dim ssm_state_size",
    24: "intermediate_size ffn_hidden_size expert_ffn_hidden_size intermediate_size_mlp",
    32: "hidden_size d_model",
    64: "vocab_size vocab_size_per_layer_input",
    128: "max_position_embeddings",
}
_SMALL = {name: value for value, names in _VALUES.items() for name in names.split()}
# What a model type needs beyond that, and why.
_ALSO: dict[str, dict[str, Any]] = {
    "dbrx": {  # sizes in configurations of their own
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe"]},  # short models have hash-routed layers only
    "doge": {"is_moe": True, "num_experts": 16},  # dense by default; a square
    "dots1": {"n_shared_experts": 1},  # none by default
    "gemma4_text": {"enable_moe_block": True},  # dense by default
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2},  # must divide the hidden size
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},  # none by default
    "zaya": {"num_experts_per_tok": 1},  # the only one it takes
}


@dataclass(frozen=True)
class Architecture:
    """A model type. router: that of its last MoE layer, None where it is refused; reason: why it is."""

    model_type: str
    model_class: str
    router: Router | None
    reason: str = ""


def moe_types() -> dict[str, type[PreTrainedModel]]:
    """Model type → class of every causal language model whose modelling file declares router logits."""
    found: dict[str, type[PreTrainedModel]] = {}
    for config_class, model_class in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        file = sys.modules[cast(type, model_class).__module__]
        own = [value for value in vars(file).values() if inspect.isclass(value) and value.__module__ == file.__name__]
        if any("router_logits" in (vars(value).get("_can_record_outputs") or {}) for value in own):
            found[config_class.model_type] = cast(type[PreTrainedModel], model_class)
    return dict(sorted(found.items()))


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A model type's configuration with small sizes. settings: fields that shall have other values."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    known = {*default.to_dict(), *inspect.signature(kind.__init__).parameters, *kind.attribute_map}
    fields = {name for name in known if kind.attribute_map.get(name) not in _SMALL}  # an alias would override its field
    values = {name: value for name, value in _SMALL.items() if name in fields}
    if "kv_lora_rank" in fields:  # multi-head latent attention has as many
        values["num_key_value_heads"] = values["num_attention_heads"]
    if default.get_text_config() is not default:  # a model of text and images
        for name in ("text_config", "vision_config"):
            if (part := getattr(default, name, None)) is not None:
                values[name] = tiny_config(part.model_type).to_dict()
    return kind(**{**values, **_ALSO.get(model_type, {}), **settings})


def tiny_model(
    model_type: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """A model type's causal language model with small sizes and random weights (none on the meta device)."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(tiny_config(model_type, **settings), dtype=dtype).eval()


def try_architecture(model_type: str) -> Architecture:
    """Finds the routers of a tiny model, and takes text through it layer by layer, as calibration does."""
    name = moe_types()[model_type].__name__
    torch.manual_seed(0)
    try:
        routers = find_routers(tiny_model(model_type, device="meta"))
        off = _layer_by_layer(tiny_model(model_type))
    except NoRouterError as error:
        return Architecture(model_type, name, None, str(error))
    if not off < 1e-4:  # float32
        return Architecture(model_type, name, None, "its layers, run one by one, do not give what the model gives")
    return Architecture(model_type, name, routers[max(routers)])


def architectures_page(architectures: list[Architecture]) -> str:
    """The page docs/architectures.md."""
    works = [one for one in architectures if one.router is not None]
    refused = [one for one in architectures if one.router is None]
    lines = [
        *_HEAD.format(version=transformers.__version__, works=len(works), all=len(architectures)).splitlines(),
        "| model type | class | router | probabilities | experts chosen by |",
        "| --- | --- | --- | --- | --- |",
        *(_row(one, one.router) for one in works if one.router),
        "",
        "## Refused",
        "",
        "By calibration, diagnosis and the merge methods that run models (Fisher, RegMean), with `NoRouterError` and",
        "the reason below, before any work. The other merge methods need no router and take them all.",
        "",
        "| model type | class | reason |",
        "| --- | --- | --- |",
        *(f"| {one.model_type} | {one.model_class} | {one.reason} |" for one in refused),
    ]
    return "\n".join(lines) + "\n"


_HEAD = """# Architectures

Written by `python -m harc.models.architectures`, held by a test: the {all} Mixture-of-Experts causal language models of
transformers {version}, each made as a tiny random model. {works} of them can be merged, diagnosed and calibrated.

A router is taken when running it shows z = W x (+ b) of its input, and weights of experts that follow softmax or
sigmoid of z ([harc/models/probe.py](../harc/models/probe.py)); its layers must run one by one. What is calibrated is W
and b, or W beside the merged b (`calibrate.bias=keep`). Everything else that takes part stays as merged: a selection
bias (DeepSeek-V3's `e_score_correction_bias`, GLM's, ERNIE's), expert groups, scaling factors, shared experts.
Curvature and routing KL are those of the distribution over all experts before any selection: with a selection bias or
groups, of the weights that experts get, not of the choice among them. Mismatch counts the choices that the router
makes.

Checkpoints quantised in FP8 blocks (DeepSeek, Qwen) or MXFP4 (gpt-oss) are dequantised tensor by tensor as they are
read; a merge is written in bfloat16, a calibration changes the routers, which are not quantised, in the quantised
checkpoint. Other quantisations are refused by name.

## Supported

"""


def _row(one: Architecture, router: Router) -> str:
    inside = router.weight_name.split(f".{router.layer}.", 1)[1]
    bias = f" + `{router.bias_name.rpartition('.')[2]}`" if router.bias_name else ""
    by = "logits" if router.by_logits else "logits with a selection bias or in groups"
    return f"| {one.model_type} | {one.model_class} | `{inside}`{bias} | {router.activation} | {by} |"


def _layer_by_layer(model: PreTrainedModel) -> float:
    """How far the last hidden states of text taken through a model layer by layer are from the model's own."""
    ids = torch.randint(3, 64, (12,))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        stream = LayerStream(folder)
        state = HiddenStates(stream, [TokenSequence(ids, 2)], 64, Store())
        with stream.loaded(None):
            state.embed()
        for layer in range(stream.layers):
            split = layer in stream.routers and state.splits(layer)
            with stream.loaded(layer):
                if layer not in stream.routers:
                    state.forward(layer)
                    continue
                state.complete(layer, state.router_inputs(layer, split), split)
        stream.load_outer()
        mask = torch.ones(1, len(ids), dtype=torch.int64)
        found = stream.logits(state.values[None], mask)
        expected = model(ids[None], use_cache=False).logits
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    PAGE.write_text(architectures_page([try_architecture(name) for name in moe_types()]), encoding="utf-8")
