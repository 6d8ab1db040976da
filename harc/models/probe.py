"""What a router computes, found out by running it: which of its parameters makes the logits, and what turns those into
weights of experts. Nothing is read off a name and nothing is assumed: what is not shown to be z = W x (+ b) followed by
softmax or sigmoid is refused, with what was seen instead.

The router is a copy with random weights in its block. Where it returns the weights of the chosen experts, they are
compared with both activations of its logits; where it returns logits only, the block is run with experts that are all
alike, and what is missing when one of them is zeroed is the weight of that expert. A copy's other weights are one
number each (an expanded tensor), so probing a router of any size takes next to no memory.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["softmax", "sigmoid"]

_TOKENS = 16
_SAME = 1e-3  # largest difference of log weights, or of logits relative to their size, that counts as rounding
_APART = 1e-2  # what the hypothesis that is turned down must be off by


class UnknownRouting(ValueError):
    """A router that is not shown to be W x (+ b) and softmax or sigmoid; the message says what was seen."""


@dataclass(frozen=True)
class Routing:
    """What a router was seen to do.

    weight, bias: names of its parameters inside the router; bias is None where its logits have none.
    activation: what turns logits into probabilities.
    top_k: how many experts it was seen to choose; None where it returns no choice.
    by_logits: whether it was seen to choose the experts with the largest logits; a selection bias or expert groups may
        choose others. Where it returns no choice, its block was seen to.
    by_block: whether the router gets the block's input as it is, so that it can be run through the block.
    """

    weight: str
    bias: str | None
    activation: Activation
    top_k: int | None
    by_logits: bool
    by_block: bool


@dataclass
class _Seen:
    """One run of the router. x: (tokens, hidden); outputs: what it returned."""

    x: Tensor
    outputs: tuple[Any, ...]
    by_block: bool


class _Stop(Exception):
    pass


def probe(block: nn.Module, inside: str, logits_index: int) -> Routing:
    """Probes the router `inside` a block (which may be on the meta device; it stays as it is).

    logits_index: which of the router's outputs is said to hold the logits.

    Raises:
        UnknownRouting: a router that cannot be run, or is not shown to be what can be calibrated.
    """
    trial = _copy(block)
    router = trial.get_submodule(inside)
    generator = torch.Generator().manual_seed(0)
    _fill(router, partial(_random, generator=generator))
    own = {id(tensor) for tensor in router.parameters()}
    _fill(trial, lambda t: torch.zeros(1).expand(t.shape) if t.ndim > 1 else _random(t, generator), but=own)
    widths = sorted({p.shape[1] for p in router.parameters() if p.ndim == 2}, reverse=True)
    with torch.no_grad():
        seen, reason = None, "it has no matrix"
        for width in widths:
            seen, reason = _run(trial, router, torch.randn(1, _TOKENS, width, generator=generator))
            if seen is not None:
                break
        if seen is None:
            raise UnknownRouting(f"cannot be run on hidden states alone: {reason}")
        logits = _logits(seen.outputs, logits_index)
        weight, bias = _linear(router, seen.x, logits)
        z = logits.reshape(len(seen.x), -1).float()
        shares, chosen = _shares(seen.outputs, logits_index, z)
        top_k = None if chosen is None else chosen.shape[1]
        if shares is None or chosen is None:
            shares, chosen = _block_shares(trial, router, seen, z)
        by_logits = torch.equal(chosen.sort(dim=1).values, z.topk(chosen.shape[1], dim=1).indices.sort(dim=1).values)
    return Routing(weight, bias, _activation(z, chosen, shares), top_k, by_logits, seen.by_block)


def run_router(block: nn.Module, router: nn.Module, x: Tensor, by_block: bool) -> Any:
    """What a router returns for x (tokens, hidden): run by its block, which may hand it more than x, or directly."""
    if not by_block:
        return router(x)
    returned: list[Any] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        returned.append(output)
        raise _Stop

    tap = router.register_forward_hook(stop)
    try:
        block(x[None])
    except _Stop:
        return returned[0]
    finally:
        tap.remove()
    raise RuntimeError(f"{type(block).__name__} never ran its {type(router).__name__}")


def _copy(block: nn.Module) -> nn.Module:
    """A copy without weights that computes in float32, its experts one after the other."""
    empty: dict[int, Any] = {}
    for tensor in (*block.parameters(), *block.buffers()):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        made = torch.empty(tensor.shape, dtype=dtype, device="meta")
        empty[id(tensor)] = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
    trial = copy.deepcopy(block, empty).eval()
    for module in trial.modules():
        if hasattr(module, "config") and hasattr(module.config, "_experts_implementation"):
            module.config._experts_implementation = "eager"
    return trial


def _fill(module: nn.Module, value: Callable[[Tensor], Tensor], but: set[int] | frozenset[int] = frozenset()) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in but:
                part._parameters[name] = nn.Parameter(value(parameter), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                made = value(buffer) if buffer.is_floating_point() else torch.zeros(buffer.shape, dtype=buffer.dtype)
                part._buffers[name] = made


def _random(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Matrices that keep the size of what they multiply; vectors between 0.5 and 1.5, so that none passes unseen."""
    if tensor.ndim < 2:
        return 0.5 + torch.rand(tensor.shape, generator=generator)
    return 1.5 * torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5


def _run(block: nn.Module, router: nn.Module, x: Tensor) -> tuple[_Seen | None, str]:
    """Runs a router in its block, or alone if its block does not take x alone; else why not."""
    taken: list[Tensor] = []
    tap = router.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    reason = ""
    try:
        for by_block in (True, False):
            taken.clear()
            try:
                outputs = run_router(block, router, x[0], True) if by_block and block is not router else router(x)
            except Exception as error:  # whatever an architecture raises when it lacks an input
                reason = reason if taken and reason else f"{type(error).__name__}: {error}"
                continue
            given = taken[0].reshape(-1, taken[0].shape[-1])
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return _Seen(given, outputs, by_block and block is not router and torch.equal(given, x[0])), ""
    finally:
        tap.remove()
    return None, reason


def _logits(outputs: tuple[Any, ...], index: int) -> Tensor:
    found = outputs[0] if len(outputs) == 1 else outputs[index] if index < len(outputs) else None
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise UnknownRouting(f"returns no logits as its output {index}")
    return found


def _linear(router: nn.Module, x: Tensor, logits: Tensor) -> tuple[str, str | None]:
    """Names of the matrix and, if there is one, the bias that the logits are made of."""
    if logits.numel() % len(x):
        raise UnknownRouting(f"returns logits of shape {tuple(logits.shape)} for {len(x)} tokens")
    z = logits.reshape(len(x), -1).float()
    vectors = {name: p for name, p in router.named_parameters() if p.shape == z.shape[1:]}
    for name, matrix in router.named_parameters():
        if matrix.shape != (z.shape[1], x.shape[1]):
            continue
        rest = z - x.float() @ matrix.T
        if rest.abs().max() < _SAME * z.abs().max():
            return name, None
        for other, vector in vectors.items():
            if (rest - vector).abs().max() < _SAME * z.abs().max():
                return name, other
    if z.min() >= 0 and (z.sum(1) - 1).abs().max() < _SAME:
        raise UnknownRouting("records probabilities as its router_logits, and its logits are not W x of its input")
    raise UnknownRouting("its logits are not W x (+ b) of its input with an experts × hidden parameter W")


def _shares(outputs: tuple[Any, ...], index: int, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The weights of chosen experts and the choice, (tokens, chosen) each, as a router returns them."""
    if len(outputs) == 1:
        return None, None
    rest = [out for place, out in enumerate(outputs) if place != index and isinstance(out, Tensor)]
    whole = [out.reshape(len(z), -1) for out in rest if out.numel() and not out.numel() % len(z)]
    floats = [out.float() for out in whole if out.is_floating_point()]
    choices = [out.long() for out in whole if not out.is_floating_point()]
    for chosen in choices:
        if not 0 <= chosen.min() <= chosen.max() < z.shape[1] or _repeats(chosen):
            continue
        for given in floats:
            if chosen.shape[1] == given.shape[1] < z.shape[1]:
                return given, chosen
            if chosen.shape[1] < given.shape[1] == z.shape[1]:
                return given.gather(1, chosen), chosen
    for given in floats:  # zero but for the chosen experts
        counts = (given != 0).sum(1)
        if given.shape == z.shape and 0 < counts.min() == counts.max() < z.shape[1]:
            return given.topk(int(counts[0])).values, given.topk(int(counts[0])).indices
    return None, None


def _repeats(chosen: Tensor) -> bool:
    ordered = chosen.sort(dim=1).values
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())


def _block_shares(block: nn.Module, router: nn.Module, seen: _Seen, z: Tensor) -> tuple[Tensor, Tensor]:
    """The relative weights of the two experts with the largest logits, (tokens, 2), from what a block returns.

    All experts are made alike; what a block's output loses when one of them is zeroed is that expert's weight times a
    vector that all experts share.
    """
    if not seen.by_block:
        raise UnknownRouting("returns logits only, and its block cannot be run to see what it makes of them")
    chosen = z.topk(2, dim=1).indices
    experts = z.shape[1]
    whole = _with_experts(block, router, seen.x, torch.ones(experts))
    shares = torch.zeros(chosen.shape)
    for expert in chosen.unique().tolist():
        alive = torch.ones(experts)
        alive[expert] = 0
        lost = (whole - _with_experts(block, router, seen.x, alive)).norm(dim=1)
        shares = torch.where(chosen == expert, lost[:, None], shares)
    if not (shares > 0).all():
        raise UnknownRouting("returns logits only, and its block does not use the experts with the largest ones")
    scale = _with_experts(block, router, seen.x, torch.zeros(experts)).sub_(whole).norm(dim=1)
    return shares / scale[:, None], chosen


def _with_experts(block: nn.Module, router: nn.Module, x: Tensor, alive: Tensor) -> Tensor:
    """A block's output with experts whose every weight is the same small number, zero for those not alive."""
    own, count = {id(tensor) for tensor in router.parameters()}, len(alive)
    for path, part in block.named_modules():
        number = next((int(step) for step in reversed(path.split(".")) if step.isdigit()), None)
        for name, parameter in part._parameters.items():
            if parameter is None or id(parameter) in own:
                continue
            size = max(parameter.shape[1:] or parameter.shape, default=1) ** -0.5
            if number is not None:  # an expert of a list
                value = (size * alive[number]).expand(parameter.shape) if number < count else None
            else:
                value = _stacked(part, parameter, size * alive)
            if value is not None:
                part._parameters[name] = nn.Parameter(value, requires_grad=False)
    output = block(x[None])
    output = output[0] if isinstance(output, tuple) else output
    return output.reshape(len(x), -1).clone()


def _stacked(part: nn.Module, parameter: Tensor, values: Tensor) -> Tensor | None:
    """One value an expert for a parameter that holds all experts, one after the other; None for another one."""
    if isinstance(part, nn.Linear) or parameter.ndim < 2 or parameter.shape[0] % len(values):
        return None
    rows = values.repeat_interleave(parameter.shape[0] // len(values))
    return rows.reshape(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)


def _activation(z: Tensor, chosen: Tensor, shares: Tensor) -> Activation:
    """Which activation of the logits the weights of the chosen experts are, up to a factor a token.

    With one expert a token the factor must be one for all tokens.
    """
    if not (shares > 0).all():
        raise UnknownRouting("gives chosen experts weights that are not positive")
    seen = shares.log()
    candidates: dict[Activation, Tensor] = {
        "softmax": z.log_softmax(1).gather(1, chosen),
        "sigmoid": F.logsigmoid(z).gather(1, chosen),
    }
    off = {name: _spread(seen - value) for name, value in candidates.items()}
    if (seen.max() - seen.min()) < _SAME:
        raise UnknownRouting("gives all chosen experts the same weight, whatever their logits")
    best = min(off, key=lambda name: off[name])
    if off[best] > _SAME or max(off.values()) < _APART:
        raise UnknownRouting("turns its logits into weights of experts by neither softmax nor sigmoid")
    return best


def _spread(difference: Tensor) -> float:
    """How far a difference of logarithms is from one constant a token (one for all where there is one expert)."""
    rows = difference if difference.shape[1] > 1 else difference.T
    return float((rows.max(1).values - rows.min(1).values).max())


__all__: Sequence[str] = ["Activation", "Routing", "UnknownRouting", "probe", "run_router"]
