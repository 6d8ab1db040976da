"""A model that is routed by another one's decisions, also while it generates (figure 1's other reading).

A swapped router (harc.swap_routers) decides by the states of the model that it is put into, which have drifted; here
the source itself reads every token beside the model, and what its routers return, expert choices and their weights,
takes the place of what the model's own do.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from harc.models.routers import NoRouterError, find_routers

_READ = ("input_ids", "attention_mask", "position_ids", "cache_position")  # what both models are given alike


@contextlib.contextmanager
def replay_decisions(model: PreTrainedModel, source: PreTrainedModel) -> Iterator[None]:
    """Within it, every forward pass of `model`, and so its `generate`, is routed as `source` routes the same tokens.

    The source keeps a key-value cache of its own beside the model's; a pass whose cache is empty begins a new text. A
    router that hands on its logits alone, for its block to choose by, has its logits replayed; a selection bias of the
    block stays the model's own. Beam search, which reorders a cache, is not followed.

    Args:
        model: a loaded Mixture-of-Experts model.
        source: another of the same architecture and tokenizer, on the same device.

    Raises:
        NoRouterError: a model without routers, or two that do not have them in the same layers.
        ValueError: a forward pass with `inputs_embeds` in place of tokens.
    """
    own, others = find_routers(model), find_routers(source)
    if own.keys() != others.keys():
        raise NoRouterError(f"routers in layers {sorted(own)} of the model and {sorted(others)} of the source")
    decided: dict[int, Any] = {}
    beside: list[DynamicCache] = []

    def read_along(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = {name: named[name] for name in _READ if named.get(name) is not None}
        given |= {"input_ids": arguments[0]} if arguments else {}
        if "input_ids" not in given:
            raise ValueError("a routed forward pass takes input_ids; inputs_embeds are of one model alone")
        past = named.get("past_key_values")
        if past is None or not past.get_seq_length():
            beside[:] = [DynamicCache(config=source.config)]
        cached = named.get("use_cache") is not False
        decided.clear()
        with torch.no_grad():
            source(**given, past_key_values=beside[0] if cached else None, use_cache=cached)

    handles = [model.register_forward_pre_hook(read_along, with_kwargs=True)]
    for layer, router in others.items():
        handles.append(router.module.register_forward_hook(partial(_note, decided, layer)))
        handles.append(own[layer].module.register_forward_hook(partial(_tell, decided, layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(decided: dict[int, Any], layer: int, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
    decided[layer] = output


def _tell(decided: dict[int, Any], layer: int, *call: Any) -> Any:
    return decided[layer]
