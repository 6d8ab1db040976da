"""Repair written down plainly: whole models in memory, one sequence at a time, dense least squares, modules by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from harc.tokens import TokenSequence

# Linear modules of a layer of any of the test's architectures, those with the same inputs on one line.
ORDER = """
self_attn.q_proj self_attn.k_proj self_attn.v_proj
self_attn.q_a_proj self_attn.kv_a_proj_with_mqa
self_attn.q_b_proj
self_attn.kv_b_proj
self_attn.o_proj
mlp.gate_proj mlp.up_proj
mlp.down_proj
mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert_gate
mlp.shared_expert.down_proj
mlp.shared_experts.gate_proj mlp.shared_experts.up_proj
mlp.shared_experts.down_proj
"""

WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def load(path: Path) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval().requires_grad_(False)
    model.set_experts_implementation("eager")
    return model


def seen(model: nn.Module, path: str, sequences: Sequence[TokenSequence]) -> list[tuple[Tensor, ...]]:
    """The inputs of a module, then its outputs, sequence by sequence."""
    calls: list[tuple[Tensor, ...]] = []

    def note(_: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        calls.append(tuple(one.reshape(-1, one.shape[-1]) for one in (*args, *outputs)))

    tap = model.get_submodule(path).register_forward_hook(note)
    for sequence in sequences:
        model(sequence.ids[None])
    tap.remove()
    return [torch.cat(values) for values in zip(*calls, strict=True)]


def ridge_step(blocks: Sequence[tuple[Tensor, Tensor, Tensor]], ridge: float) -> Tensor:
    """The D of weighted least squares with a ridge from (x, e, weight) of each domain, from all rows."""
    x = torch.cat([weight.sqrt()[:, None] * x for x, _, weight in blocks])
    e = torch.cat([weight.sqrt()[:, None] * e for _, e, weight in blocks])
    pull = (ridge * x.square().sum(0)).sqrt().diag()
    rows = torch.cat([x, pull])
    target = torch.cat([e, torch.zeros(len(pull), e.shape[1], dtype=e.dtype)])
    return torch.linalg.lstsq(rows, target, driver="gelsd").solution.T  # by SVD: an input may never fire


def repaired(
    paths: Sequence[Path],
    data: Sequence[Sequence[TokenSequence]],
    parts: Sequence[str],
    ridge: float,
    drift: float = 0.0,
    fit_router: Callable[..., Tensor] | None = None,
) -> nn.Module:
    """The repaired merged model. fit_router: of (features, sources' routers, targets, merged router)."""
    merged, *sources = (load(path) for path in paths)
    modules = dict(merged.named_modules())
    for layer in range(merged.config.num_hidden_layers):
        block = f"model.layers.{layer}"
        lines = [[f"{block}.{name}" for name in line.split()] for line in ORDER.strip().splitlines()]
        groups = [[name for name in names if name in modules] for names in lines]
        for group in filter(None, groups):
            if "attention" in parts and "self_attn" in group[0]:
                repair_linear(merged, sources, data, group, ridge, drift)
        router = f"{block}.mlp.gate"
        if router in modules and fit_router is not None:
            features = [seen(merged, router, text)[0] for text in data]
            routers = [source.get_submodule(router).weight for source in sources]
            own = [seen(source, router, text)[0] for source, text in zip(sources, data, strict=True)]
            targets = [x @ weight.T for x, weight in zip(own, routers, strict=True)]
            weight = merged.get_submodule(router).weight
            weight.data = fit_router(features, routers, targets, weight.data)
        if "experts" not in parts:
            continue
        for group in filter(None, groups):
            if "self_attn" not in group[0]:
                repair_linear(merged, sources, data, group, ridge, drift)
        if f"{block}.mlp.experts" in modules:
            repair_routed(merged, sources, data, f"{block}.mlp.experts", ridge, drift)
    return merged


def repair_linear(merged, sources, data, group: Sequence[str], ridge: float, drift: float) -> None:
    steps = {}
    for name in group:
        blocks = []
        for source, text in zip(sources, data, strict=True):
            (x, y_merged), (_, y_source) = seen(merged, name, text), seen(source, name, text)
            lacking = torch.zeros(1, dtype=x.dtype)
            layer, _, module = name.removeprefix("model.layers.").partition(".")
            if module in WRITERS:
                lacking = residual(source, layer, module, text) - residual(merged, layer, module, text)
            error = y_source + drift * lacking - y_merged
            blocks.append((x, error, torch.full((len(x),), 1 / len(x), dtype=x.dtype)))
        steps[name] = ridge_step(blocks, ridge)
    for name, step in steps.items():
        merged.get_submodule(name).weight.data += step


def residual(model: nn.Module, layer: str, module: str, text: Sequence[TokenSequence]) -> Tensor:
    """The residual stream that a module's output is added to."""
    block = f"model.layers.{layer}"
    before = seen(model, block, text)[0]
    return before if module.startswith("self_attn") else before + seen(model, f"{block}.self_attn.o_proj", text)[1]


def repair_routed(merged, sources, data, name: str, ridge: float, drift: float) -> None:
    own = merged.get_submodule(name)
    layer = name.split(".")[2]
    met = []
    for source, text in zip(sources, data, strict=True):
        x_merged = seen(merged, name, text)[0]
        x_source, chosen, weights, _ = seen(source, name, text)
        lacking = drift * (residual(source, layer, "mlp", text) - residual(merged, layer, "mlp", text))
        met.append((source.get_submodule(name), x_merged, x_source, chosen, weights, lacking / weights.sum(1)[:, None]))
    for expert in range(len(own.down_proj)):
        first, second, kept = [], [], []
        for source, x_merged, x_source, chosen, weights, lacking in met:
            routed, slot = (chosen == expert).nonzero(as_tuple=True)
            share = weights[routed, slot] / len(x_merged)
            target = project(source, "gate_up_proj", expert, x_source[routed])
            first.append((x_merged[routed], target - project(own, "gate_up_proj", expert, x_merged[routed]), share))
            kept.append((source, x_merged[routed], target, share, lacking[routed]))
        matrix(own, "gate_up_proj", expert).add_(ridge_step(first, ridge))
        for source, x, target, share, lacking in kept:
            inner = own._apply_gate(project(own, "gate_up_proj", expert, x))
            y = project(source, "down_proj", expert, source._apply_gate(target)) + lacking
            second.append((inner, y - project(own, "down_proj", expert, inner), share))
        matrix(own, "down_proj", expert).add_(ridge_step(second, ridge))


def matrix(experts: nn.Module, name: str, expert: int) -> Tensor:
    """An expert's (outputs, inputs) matrix."""
    weight = experts.get_parameter(name).data[expert]
    return weight.T if experts.is_transposed else weight


def project(experts: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    y = x @ matrix(experts, name, expert).T
    return y + experts.get_parameter(f"{name}_bias")[expert] if experts.has_bias else y
