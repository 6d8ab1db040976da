"""Finding the routers of any Mixture-of-Experts model through transformers' own declarations.

Every MoE model class of transformers declares `_can_record_outputs["router_logits"]`: the class of its routers and
which of their outputs holds the logits. No list of architectures is kept here; what a router computes is found by
running it (harc.models.probe).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils.output_capturing import OutputRecorder

from harc.models.probe import Activation, Routing, UnknownRouting, probe

__all__ = ["Activation", "NoRouterError", "Router", "find_routers"]


class NoRouterError(ValueError):
    """A model without routers, or with routers that cannot be calibrated; the message says why."""


@dataclass(frozen=True)
class Router:
    """One layer's router, z = W x or z = W x + b.

    layer: index of the decoder layer it belongs to (dense layers count, so indices may skip).
    name: module path of the router; moe_name: of the block it sits in.
    weight: its (experts, hidden) parameter W; weight_name: that parameter's name in the model; checkpoint_key: in the
    published layout.
    bias, bias_name, bias_key: the same of b; None where there is none. A bias that only selects experts is none.
    top_k: experts active per token.
    logits_index: which of the module's outputs holds the logits; activation: what turns logits into probabilities.
    by_logits: whether it chooses the experts with the largest logits; else a selection bias or expert groups take part,
    which stay as they are.
    by_block: whether its block hands it the block's input (and perhaps more), so that it can be run through that.
    """

    layer: int
    name: str
    module: nn.Module
    weight: Float[Tensor, "experts hidden"]
    weight_name: str
    checkpoint_key: str
    moe_name: str
    top_k: int
    logits_index: int
    activation: Activation
    bias: Float[Tensor, "experts"] | None = None
    bias_name: str | None = None
    bias_key: str | None = None
    by_logits: bool = True
    by_block: bool = False

    @property
    def keys(self) -> list[str]:
        """The published names of what is calibrated: W, and b if there is one."""
        return [self.checkpoint_key, *([self.bias_key] if self.bias_key else [])]


def find_routers(model: PreTrainedModel) -> dict[int, Router]:
    """Finds the routers of a model (its weights may be on the meta device), by decoder layer, in order.

    Raises:
        NoRouterError: the model declares no router, has none, or one is not shown to be W x (+ b) followed by softmax
            or sigmoid; the message names the module and says what was seen.
    """
    kind = type(model).__name__
    recorders = _recorders(model)
    if not recorders:
        raise NoRouterError(f"{kind} is not a Mixture-of-Experts model: it declares no router_logits")
    routers: dict[int, Router] = {}
    known: dict[Any, Routing] = {}
    for name, module in model.named_modules():
        recorder = next((r for r in recorders if _matches(r, name, module)), None)
        if recorder is None:
            continue
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if layer is None:
            raise NoRouterError(f"{kind}: cannot tell which decoder layer {name} belongs to")
        if layer in routers:
            raise NoRouterError(f"{kind}: layer {layer} has two routers, {routers[layer].name} and {name}")
        moe_name, _, leaf = name.rpartition(".")
        block = model.get_submodule(moe_name)
        same = (type(block), leaf, recorder.index, *((n, p.shape) for n, p in block.named_parameters()))
        try:
            routing = known[same] = known.get(same) or probe(block, leaf, recorder.index)
        except UnknownRouting as reason:
            raise NoRouterError(f"{kind}: {name} ({type(module).__name__}) {reason}") from reason
        weight_name = f"{name}.{routing.weight}"
        bias_name = f"{name}.{routing.bias}" if routing.bias else None
        routers[layer] = Router(
            layer=layer,
            name=name,
            module=module,
            weight=model.get_parameter(weight_name),
            weight_name=weight_name,
            checkpoint_key=_published(model, weight_name),
            moe_name=moe_name,
            top_k=routing.top_k or _top_k(model.config, block, module),
            logits_index=recorder.index,
            activation=routing.activation,
            bias=model.get_parameter(bias_name) if bias_name else None,
            bias_name=bias_name,
            bias_key=_published(model, bias_name) if bias_name else None,
            by_logits=routing.by_logits,
            by_block=routing.by_block,
        )
    if not routers:
        raise NoRouterError(f"{kind} declares routers but this model has none: is any of its layers sparse?")
    return dict(sorted(routers.items()))


def _recorders(model: PreTrainedModel) -> list[OutputRecorder]:
    declared: list[OutputRecorder] = []
    for owner in model.modules():
        specs: Any = (getattr(owner, "_can_record_outputs", None) or {}).get("router_logits", [])
        for spec in specs if isinstance(specs, list) else [specs]:
            declared.append(spec if isinstance(spec, OutputRecorder) else OutputRecorder(spec, index=1))
    return declared


def _matches(recorder: OutputRecorder, name: str, module: nn.Module) -> bool:
    if recorder.target_class is None or not isinstance(module, recorder.target_class):
        return False
    return recorder.layer_name is None or f".{recorder.layer_name.strip('.')}." in f".{name}."


def _published(model: PreTrainedModel, name: str) -> str:
    """The name of a parameter in the checkpoint, which may differ from the module's (Mixtral: block_sparse_moe)."""
    return next(iter(revert_weight_conversion(model, {name: torch.empty(0)})))


def _top_k(config: Any, *modules: nn.Module) -> int:
    """Experts active per token, of a router that returns no choice: what its module, block or configuration says."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts", "moe_topk")
    parts = [getattr(config, name) for name in getattr(config, "sub_configs", {})]
    for owner, keys in (*((module, ("top_k",)) for module in modules), *((part, names) for part in (config, *parts))):
        for key in keys:
            value = getattr(owner, key, None)
            if isinstance(value, int) and value > 0:
                return value
    raise NoRouterError(f"{type(modules[-1]).__name__}: how many experts are active per token is nowhere to be read")
