"""Finding the routers of any Mixture-of-Experts model through transformers' own declarations.

Every MoE model class of transformers declares `_can_record_outputs["router_logits"]`: the class of its routers and
which of their outputs holds the logits. No list of architectures is kept here.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils.output_capturing import OutputRecorder

Activation = Literal["softmax", "sigmoid"]


class NoRouterError(ValueError):
    """A model without routers, or with routers whose logits are not W x."""


@dataclass(frozen=True)
class Router:
    """One layer's router.

    layer: index of the decoder layer it belongs to (dense layers count, so indices may skip).
    name: module path of the router; moe_name: of the block it sits in.
    weight: its (experts, hidden) parameter; checkpoint_key: that parameter's name in the published layout.
    logits_index: which of the module's outputs holds the logits; activation: what turns logits into probabilities.
    """

    layer: int
    name: str
    module: nn.Module
    weight: Float[Tensor, "experts hidden"]
    checkpoint_key: str
    moe_name: str
    top_k: int
    logits_index: int
    activation: Activation


def find_routers(model: PreTrainedModel) -> dict[int, Router]:
    """Finds the routers of a model (its weights may be on the meta device), by decoder layer, in order.

    Raises:
        NoRouterError: the model declares no router, has none, or its routers are not a bare matrix.
    """
    kind = type(model).__name__
    recorders = _recorders(model)
    if not recorders:
        raise NoRouterError(f"{kind} is not a Mixture-of-Experts model: it declares no router_logits")
    routers: dict[int, Router] = {}
    for name, module in model.named_modules():
        recorder = next((r for r in recorders if _matches(r, name, module)), None)
        if recorder is None:
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise NoRouterError(f"{kind}: {name} ({type(module).__name__}) has no experts × hidden weight to calibrate")
        if getattr(module, "bias", None) is not None:
            raise NoRouterError(f"{kind}: {name} adds a bias to its logits; only routers z = W x can be calibrated")
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if layer is None or layer in routers:
            raise NoRouterError(f"{kind}: cannot tell which decoder layer {name} belongs to")
        routers[layer] = Router(
            layer=layer,
            name=name,
            module=module,
            weight=weight,
            checkpoint_key=_published(model, f"{name}.weight"),
            moe_name=name.rpartition(".")[0],
            top_k=_top_k(model.config, module),
            logits_index=recorder.index,
            activation=_activation(module, recorder.index),
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


def _top_k(config: Any, module: nn.Module) -> int:
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts", "moe_topk")
    for owner, keys in ((module, ("top_k",)), (config, names)):
        for key in keys:
            value = getattr(owner, key, None)
            if isinstance(value, int) and value > 0:
                return value
    raise NoRouterError(f"{type(module).__name__}: how many experts are active per token is nowhere to be read")


def _activation(module: nn.Module, logits_index: int) -> Activation:
    """Tells softmax from sigmoid by what a copy of the router does: the ratio of two of its expert weights.

    Normalising over the chosen experts and scaling leave that ratio alone: exp(z_a − z_b) for softmax,
    σ(z_a) / σ(z_b) for sigmoid. A router that returns logits only is taken for softmax.
    """
    trial = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*trial.parameters(), *trial.buffers()):
            tensor.zero_()
        weight: Tensor = trial.weight  # type: ignore[assignment]
        weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
        outputs = trial(torch.randn(1, 1, weight.shape[1], generator=generator))
    if not isinstance(outputs, tuple):
        return "softmax"
    logits = outputs[logits_index].reshape(-1)
    rest = [out for index, out in enumerate(outputs) if index != logits_index and isinstance(out, Tensor)]
    chosen = next((out.reshape(-1) for out in rest if not out.is_floating_point()), None)
    shares = next((out.reshape(-1) for out in rest if out.is_floating_point()), None)
    if chosen is None or shares is None or len(chosen) < 2 or len(shares) not in (len(chosen), len(logits)):
        return "softmax"
    shares = shares if len(shares) == len(chosen) else shares[chosen]
    z = logits[chosen]
    ratio = (shares[0] / shares[1]).log()
    softmax, sigmoid = z[0] - z[1], z[0].sigmoid().log() - z[1].sigmoid().log()
    return "sigmoid" if (ratio - sigmoid).abs() < 1e-3 < (ratio - softmax).abs() else "softmax"
