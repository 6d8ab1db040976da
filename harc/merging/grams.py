"""What every linear layer of a block receives, as Gram matrices, collected by hooks while the block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from harc.models.streaming import LayerStream


@contextmanager
def collecting(layer: nn.Module, prefix: str) -> Iterator["GramCollector"]:
    """Collects Gram matrices of the inputs of every linear weight in `layer`, by parameter name under `prefix`."""
    collector = GramCollector()
    handles = []
    for path, module in layer.named_modules(prefix=prefix):
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding):
            hook = collector.linear_hook(f"{path}.weight", weight)
        elif {"down_proj", "gate_up_proj"} <= module._parameters.keys() or _is_ungated(module):
            hook = collector.experts_hook(path)
        else:
            continue
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield collector
    finally:
        for handle in handles:
            handle.remove()


class GramCollector:
    """Sums of x xᵀ in float32.

    Attributes:
        grams: by parameter name, (columns, columns), or (experts, columns, columns) for fused experts.
        counts: by parameter name, how many rows x were summed, () or (experts,).
        mask: marks the real tokens of the batch that is about to run.
    """

    def __init__(self) -> None:
        self.grams: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.mask: Tensor = torch.empty(0, dtype=torch.bool)
        self._last: tuple[Tensor, Tensor, int] | None = None

    def begin(self, mask: Tensor) -> None:
        """Announces a batch by its attention mask (batch, length)."""
        self.mask = mask.reshape(-1).bool()
        self._last = None

    def linear_hook(self, name: str, weight: Tensor) -> Any:
        """Makes the hook of a module whose `weight` multiplies its input's last dimension."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if not isinstance(x, Tensor) or x.shape[-1] != weight.shape[1]:
                return
            if self._last is None or self._last[0] is not x:  # q, k and v share their input
                rows = self._real_rows(x)
                if rows is None:
                    return
                self._last = (x, rows.mT @ rows, len(rows))
            self.add(name, *self._last[1:])

        return hook

    def experts_hook(self, path: str) -> Any:
        """Makes the hook of a module of fused experts, called with hidden states, chosen experts and their weights."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden, chosen = _routed(args, kwargs)
            hidden = hidden.reshape(-1, hidden.shape[-1])
            chosen = torch.where(self.mask[:, None], chosen, -1)
            first = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
            inputs, activations, counts = [], [], []
            for expert in range(len(module.get_parameter("down_proj"))):
                rows = hidden[(chosen == expert).any(dim=-1)]
                inner = _activations(module, first, expert, rows)
                inputs.append(rows.float().mT @ rows.float())
                activations.append(inner.float().mT @ inner.float())
                counts.append(len(rows))
            self.add(f"{path}.{first}", torch.stack(inputs), counts)
            self.add(f"{path}.down_proj", torch.stack(activations), counts)

        return hook

    def _real_rows(self, x: Tensor) -> Tensor | None:
        rows = x.reshape(-1, x.shape[-1]).float()
        if len(rows) == len(self.mask):
            return rows[self.mask]
        return rows if bool(self.mask.all()) else None  # tokens already gathered: padding cannot be told from them

    def add(self, name: str, gram: Tensor, rows: int | list[int]) -> None:
        """Adds to a parameter's sum the Gram matrix (or one per expert) of so many rows."""
        count = torch.tensor(rows)
        if name in self.grams:
            self.grams[name] += gram
            self.counts[name] += count
        else:
            self.grams[name] = gram.clone()
            self.counts[name] = count


def head_inputs(model: "LayerStream", batches: list, hidden: list[Tensor]) -> GramCollector:
    """Collects the Gram matrix of the head's input; none for a head that is the embeddings, or missing."""
    seen = GramCollector()
    head, embeddings = model.model.get_output_embeddings(), model.model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        return seen
    name = next(name for name, value in model.outer_parameters().items() if value is head.weight)
    for (_, _, mask), states in zip(batches, hidden, strict=True):
        mask = mask.to(model.device)
        x = model.final(states.to(model.device), mask)[mask.bool()].float()
        seen.add(name, x.mT @ x, len(x))
    return seen


def _activations(module: Any, first: str, expert: int, rows: Tensor) -> Tensor:
    weight = module.get_parameter(first)[expert]
    bias = module.get_parameter(f"{first}_bias")[expert] if getattr(module, "has_bias", False) else None
    projected = functional.linear(rows, weight.mT if getattr(module, "is_transposed", False) else weight, bias)
    return module._apply_gate(projected) if first == "gate_up_proj" else module.act_fn(projected)


def _routed(args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False), **kwargs)
    return named["hidden_states"], named["top_k_index"]


def _is_ungated(module: nn.Module) -> bool:
    names = module._parameters.keys()
    return {"down_proj", "up_proj"} <= names and not getattr(module, "has_gate", True)
