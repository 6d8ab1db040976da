"""Whether the tensors are those that the architecture publishes: names, shapes, dtypes.

What is published is what the sources hold, or the base; without either, what transformers would save of the model that
config.json describes.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from harc.checking.findings import Finding, counted, numbers
from harc.checkpoint import Checkpoint

Shapes = dict[str, tuple[int, ...]]


def published_shapes(model: PreTrainedModel, references: Sequence[Checkpoint]) -> Shapes:
    """The names and shapes that the model's tensors are expected under."""
    if references:
        return {name: info.shape for name, info in references[0].tensors.items()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    state = {name: value.to("meta") for name, value in model.state_dict().items() if name not in tied}
    saved = revert_weight_conversion(model, state)
    return {name: tuple(value.shape) for name, value in saved.items()}


def check_layout(model: Checkpoint, expected: Shapes, references: Sequence[Checkpoint]) -> list[Finding]:
    """Findings on names, shapes and dtypes; nothing but headers is read."""
    missing = [name for name in expected if name not in model]
    extra = [name for name in model if name not in expected]
    of = f"{references[0].folder.name} has" if references else "this architecture publishes"
    findings = []
    fused = {name for name in extra if _is_fused(name, model.tensors[name].shape, missing)}
    if fused:
        layers = _layers(fused)
        lost = [name for name in missing if _fused_into(name, layers)]
        findings.append(
            Finding(
                "problem",
                "layout",
                f"{len(model.tensors)} tensors where {of} {len(expected)}: {counted('layer', sorted(layers))} "
                f"{'hold' if len(layers) > 1 else 'holds'} all experts in fused tensors "
                f"({', '.join(sorted({_within(name) for name in fused}))}), in place of one key an expert "
                f"({', '.join(sorted({_within(name) for name in lost}))}). This is how transformers holds them in "
                "memory, not how the model is published: loaders that look for the experts' own keys find none",
                sorted(fused)[:8],
            )
        )
        missing = [name for name in missing if name not in set(lost)]
        extra = [name for name in extra if name not in fused]
    findings += [
        Finding("problem", "layout", f"missing: {text}, which {of}", names[:8]) for text, names in _grouped(missing)
    ]
    tied = "lm_head.weight" if model.config.get("tie_word_embeddings") else ""
    for text, names in _grouped([name for name in extra if name != tied]):
        findings.append(Finding("problem", "layout", f"not published: {text}; {of} no such tensor", names[:8]))
    findings += _shape_findings(model, expected)
    findings += _dtype_findings(model, references)
    return findings


def _shape_findings(model: Checkpoint, expected: Shapes) -> list[Finding]:
    wrong = [name for name, info in model.tensors.items() if name in expected and info.shape != expected[name]]
    found = []
    for text, names in _grouped(wrong):
        shape, right = model.tensors[names[0]].shape, expected[names[0]]
        found.append(Finding("problem", "layout", f"{text}: shape {list(shape)}, expected {list(right)}", names[:8]))
    return found


def _dtype_findings(model: Checkpoint, references: Sequence[Checkpoint]) -> list[Finding]:
    """A tensor in another dtype than the rest of the model, where the sources' is not; config.json's dtype."""
    floats = {name: str(info.dtype).removeprefix("torch.") for name, info in model.tensors.items()}
    counts: dict[str, int] = defaultdict(int)
    for dtype in floats.values():
        counts[dtype] += 1
    if not counts:
        return []
    most = max(counts, key=lambda dtype: counts[dtype])
    odd = []
    for name, dtype in floats.items():
        theirs = next((one.tensors[name].dtype for one in references if name in one), None)
        if dtype != most and str(theirs).removeprefix("torch.") != dtype:
            odd.append(name)
    found = [
        Finding("problem", "layout", f"{text}: {floats[names[0]]}, the rest of the model is {most}", names[:8])
        for text, names in _grouped(odd)
    ]
    said = model.config.get("dtype") or model.config.get("torch_dtype")
    if said and said != most and "quantization_config" not in model.config:
        found.append(Finding("note", "layout", f"config.json says dtype {said}; the weights are {most}"))
    usual = {str(one.tensors[name].dtype) for one in references for name in list(one)[:1]}
    if len(usual) == 1 and (other := usual.pop().removeprefix("torch.")) != most:
        found.append(Finding("note", "layout", f"stored in {most}, the sources in {other}"))
    return found


def _is_fused(name: str, shape: tuple[int, ...], missing: Sequence[str]) -> bool:
    """Whether an unpublished tensor stands for missing ones of single experts."""
    return len(shape) >= 2 and "expert" in name and any(_fused_into(one, _layers({name})) for one in missing)


def _fused_into(name: str, layers: set[int]) -> bool:
    """Whether a missing tensor is of one expert in one of the layers (whose block may have another name)."""
    found = re.match(r".*\.(\d+)\..*experts\.\d+\.", name)
    return found is not None and int(found[1]) in layers


def _layers(names: set[str]) -> set[int]:
    return {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}


def _within(name: str) -> str:
    """A name without its layer, an expert's number as a star."""
    inside = re.split(r"\.\d+\.", name, maxsplit=1)[-1]
    return re.sub(r"\.\d+\.", ".*.", inside)


def _grouped(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Names of tensors in words, those of one layer drawn together: `layer 3, experts 4–7 (gate_proj, up_proj)`."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        parts = re.findall(r"\.(\d+)(?=\.)", name)
        key = ("expert", parts[0]) if len(parts) > 1 else ("layer", parts[0]) if parts else ("", name)
        groups[key].append(name)
    said = []
    for (where, what), members in groups.items():
        if where == "expert":
            experts = [int(re.findall(r"\.(\d+)(?=\.)", name)[1]) for name in members]
            leaves = sorted({_within(name).split(".*.")[-1].removesuffix(".weight") for name in members})
            said.append((f"layer {what}, {counted('expert', experts)} ({', '.join(leaves)})", members))
        elif where == "layer":
            leaves = sorted({_within(name).removesuffix(".weight") for name in members})
            said.append((f"layer {what}: {', '.join(leaves)}", members))
        else:
            said.append((what, members))
    return _same_in_all_layers(said)


def _same_in_all_layers(said: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Draws groups together that read the same but for their layer."""
    merged: dict[str, tuple[list[int], list[str]]] = {}
    plain = []
    for text, names in said:
        found = re.match(r"layer (\d+)(.*)", text)
        if found is None:
            plain.append((text, names))
            continue
        layers, members = merged.setdefault(found[2], ([], []))
        layers.append(int(found[1]))
        members += names
    return [
        (f"layer{'s' if len(layers) > 1 else ''} {numbers(layers)}{rest}", names)
        for rest, (layers, names) in merged.items()
    ] + plain
