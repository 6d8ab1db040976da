"""The linear maps of a block as they run: which there are, in what order, and what goes into and comes out of them.

Nothing goes by names. A block is run once on a few tokens: its linear modules in the order in which they are called,
those that are handed the very same tensor in one group. An expert that transformers stores as a slice of a 3-D
parameter is taken for two linear modules whose weights are views of it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

Maps = Mapping[str, nn.Linear]


class Reached(Exception):
    """All modules that are listened to have run; the rest of the forward pass is not needed."""


def linear_maps(block: nn.Module, without: tuple[nn.Module, ...] = ()) -> dict[str, nn.Linear]:
    """The linear modules of a block, by path, leaving out those inside (or that are) some of its modules."""
    left_out = {id(module) for owner in without for module in owner.modules()}
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in left_out
    }


def call_order(maps: Maps, run: Callable[[], object]) -> list[list[str]]:
    """Groups of maps with the same inputs, in the order in which `run` calls them; one called twice is left out."""
    calls: list[tuple[str, Tensor]] = []
    taps = [
        module.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, args[0])))
        for name, module in maps.items()
    ]
    try:
        run()
    finally:
        for tap in taps:
            tap.remove()
    names = [name for name, _ in calls]
    groups: list[tuple[tuple[int, int], list[str]]] = []
    for name, x in calls:  # their inputs are all alive, so that no address is another tensor's
        place = (x.data_ptr(), x.numel())
        if names.count(name) > 1:
            continue
        group = next((members for other, members in groups if other == place), None)
        if group is None:
            groups.append((place, [name]))
        else:
            group.append(name)
    return [members for _, members in groups]


@contextlib.contextmanager
def listening(maps: Maps) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Notes each map's last input and output; when all have run, the forward pass ends (inside the block) there."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            seen[name] = (args[0], output)
            if len(seen) == len(maps):
                raise Reached

        return hook

    taps = [module.register_forward_hook(note(name)) for name, module in maps.items()]
    try:
        yield seen
    finally:
        for tap in taps:
            tap.remove()


def observe(maps: Maps, run: Callable[[], object]) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and outputs of maps in one run.

    Raises:
        RuntimeError: a map that the run did not call.
    """
    with listening(maps) as seen, contextlib.suppress(Reached):
        run()
    if missing := [name for name in maps if name not in seen]:
        raise RuntimeError(f"{missing[0]} was not called")
    return dict(seen)


@contextlib.contextmanager
def muted(experts: nn.Module, scale: float = 0.0) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Lets routed experts return their input times `scale`; notes what they are called with: (x, chosen, weights)."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def scaled(*args: Tensor, **kwargs: Tensor) -> Tensor:
        x, chosen, weights = (*args, *kwargs.values())
        calls.append((x, chosen, weights))
        return x * scale

    experts.forward = scaled  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del experts.forward


def experts_module(moe: nn.Module) -> nn.Module | None:
    """The module of an MoE block that holds its routed experts in 3-D parameters; None if there is none of the kind."""
    return next((module for module in moe.modules() if _is_experts(module)), None)


def _is_experts(module: nn.Module) -> bool:
    down = module._parameters.get("down_proj")
    first = module._parameters.get(first_name(module))
    return down is not None and first is not None and down.dim() == first.dim() == 3 and hasattr(module, "_apply_gate")


def first_name(experts: Any) -> str:
    """The parameter with the experts' first maps."""
    return "gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj"


class Expert(nn.Module):
    """One routed expert: `first` (gate and up in one) and `second` (down), on views of the experts' parameters."""

    def __init__(self, experts: Any, index: int) -> None:
        super().__init__()
        self.__dict__["experts"] = experts
        self.first = _view(experts, first_name(experts), index)
        self.second = _view(experts, "down_proj", index)

    def linear(self, key: str) -> nn.Linear:
        """The map `first` or `second`."""
        return self.first if key == "first" else self.second

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        """The expert's output, not yet weighted by the router."""
        experts = self.__dict__["experts"]
        inner = self.first(x)
        inner = experts._apply_gate(inner) if getattr(experts, "has_gate", True) else experts.act_fn(inner)
        return self.second(inner)


def _view(experts: Any, name: str, index: int) -> nn.Linear:
    weight = experts.get_parameter(name).data[index]
    weight = weight.mT if getattr(experts, "is_transposed", False) else weight
    module = nn.Linear(1, 1, bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.out_features, module.in_features = weight.shape
    if getattr(experts, "has_bias", False):
        module.bias = nn.Parameter(experts.get_parameter(f"{name}_bias").data[index], requires_grad=False)
    return module
