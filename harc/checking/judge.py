"""What the pieces' values and movements say, in words: lost, untouched, copied, swapped, doubled, out of the ordinary.

A piece is held against its own kind: the limits below are factors of the median over all layers and experts.
"""

import re
from collections import defaultdict
from collections.abc import Sequence, Set
from statistics import median

import torch

from harc.checking.findings import Finding, counted, numbers
from harc.checking.movement import Look

_NEARER = 0.5  # of the distance to its own place that a piece must be from another's to be taken for that one
_SAME = 1e-3  # of the references' distance that two pieces may be apart to be taken for one
_SCALED = 1.5  # factor of the base's size, against the median of the kind
_FAR = 8.0  # factor of the movement, against what the sources moved, and the median of the kind
_ALIEN = 0.3  # of the kind's median share of a movement that the sources explain
_PEAK = 8.0  # factor of the references' largest magnitude
_LOUD = 6.0  # factor of the kind's median size, where there is no reference


def judge(looks: Sequence[Look], sources: Sequence[str], routers: Set[str] = frozenset()) -> list[Finding]:
    """Findings on the values and movements of all pieces of a model.

    Args:
        looks: of all pieces.
        sources: their names.
        routers: parameters that are routers': a calibration moves them where no source went.
    """
    findings = []
    said: set[int] = set()

    def say(text: str, chosen: Sequence[Look], severity: str = "problem", topic: str = "movement") -> None:
        fresh = [one for one in chosen if id(one) not in said]
        said.update(id(one) for one in fresh)
        for where, members in _placed(fresh):
            findings.append(
                Finding("problem" if severity == "problem" else "note", topic, f"{where} {text}", _names(members))
            )

    finite = [one for one in looks if one.finite]
    say("not finite: NaN or Inf", [one for one in looks if not one.finite], topic="values")
    say("all zeros, where the references are not", [one for one in looks if one.lost], topic="values")
    bare = [one for one in finite if one.zero and not one.lost and one.movement is None]
    matrices = [one for one in bare if len(one.sketch) > 1 and "bias" not in one.piece.kind]
    say("all zeros", matrices, topic="values")
    for text, members in _misplaced(finite):
        say(text, members)
    untouched = [one for one in finite if one.untouched]
    left = _left_out(finite)
    say(
        "equal the base's throughout: some methods leave them so (WUDI merges linear maps alone); else they were lost",
        [one for one in untouched if one.piece.kind in left],
        "note",
    )
    say("equal the base's: lost in merging", untouched)
    for index, name in enumerate(sources):
        copied = [one for one in finite if one.copied == index]
        whole = len(copied) > 0.5 * len(finite)
        if whole:
            findings.append(Finding("problem", "movement", f"{len(copied)} of {len(finite)} parameters equal {name}'s"))
            said.update(id(one) for one in copied)
        else:
            say(f"equal {name}'s: copied from one source, not merged", copied)
    kinds: dict[str, list[Look]] = defaultdict(list)
    for one in finite:
        kinds[one.piece.kind].append(one)
    outliers: dict[str, list[Look]] = defaultdict(list)
    for members in kinds.values():
        for text, odd in _outliers(members).items():
            outliers[text].extend(odd)
    for text, odd in outliers.items():
        say(text, [one for one in odd if one.piece.parameter not in routers])
        say(f"{text} (a calibrated router may)", [one for one in odd if one.piece.parameter in routers], "note")
    return findings


def _left_out(looks: Sequence[Look]) -> set[str]:
    """Kinds that no layer's piece was merged of and that are no linear map of a layer: embeddings, norms, head."""
    kinds: dict[str, bool] = {}
    for one in looks:
        optional = one.untouched and (one.piece.layer is None or len(one.shape) < 2)
        kinds[one.piece.kind] = kinds.get(one.piece.kind, True) and optional
    return {kind for kind, whole in kinds.items() if whole}


def _outliers(members: Sequence[Look]) -> dict[str, list[Look]]:
    """Pieces unlike the others of their kind."""
    found: dict[str, list[Look]] = defaultdict(list)
    if not any(one.movement for one in members):
        usual = median(one.rms for one in members)
        for one in members:
            if len(members) > 3 and usual > 0 and not usual / _LOUD < one.rms < usual * _LOUD:
                found[f"{one.rms / usual:.3g} times as large as is usual for its kind"].append(one)
        return found
    moved = [(one, one.movement) for one in members if one.movement is not None]
    scale = median(move.scale for _, move in moved)
    ratios = {id(one): move.moved / max(max(move.sources_moved, default=0), 1e-12) for one, move in moved}
    ratio = median(ratios.values())
    shares = [move.explained for _, move in moved if move.explained is not None]
    share = median(shares) if shares else 0.0
    for one, move in moved:
        relative = move.scale / scale if scale > 0 else 1.0
        if one.usual is not None and (relative > _SCALED or relative < 1 / _SCALED) and len(one.sketch) > 1:
            found[f"{move.scale:.1f} times the references' size"].append(one)
        elif one.peak > _PEAK:
            found[f"hold a value {one.peak:.0f} times as large as any of the references'"].append(one)
        elif move.sources_moved and max(move.sources_moved) > 0 and ratios[id(one)] > _FAR * max(ratio, 1.0):
            found["moved much further than the sources and their kind"].append(one)
        elif move.sources_moved and len(one.sketch) > 64 and 0 < ratios[id(one)] < ratio / _FAR:
            found["hardly moved, though the sources did"].append(one)
        elif move.explained is not None and share > 0.3 and move.explained < _ALIEN * share and len(one.sketch) > 64:
            found["moved, but not where any of the sources did"].append(one)
    return found


def _misplaced(looks: Sequence[Look]) -> list[tuple[str, list[Look]]]:
    """Pieces that are nearer to another's place than to their own, or that are one another's copy."""
    groups: dict[tuple[str, int], list[Look]] = defaultdict(list)
    for one in looks:
        if len(one.sketch) > 64 and not one.zero:
            groups[one.piece.kind, len(one.sketch)].append(one)
    found: dict[tuple[str, ...], list[Look]] = defaultdict(list)
    for members in groups.values():
        if len(members) > 1:
            for text, one in _of_one_kind(members):
                found[(text,)].append(one)
    return [(text, members) for (text,), members in found.items()]


def _of_one_kind(members: list[Look]) -> list[tuple[str, Look]]:
    own = torch.stack([one.sketch for one in members])
    apart = torch.cdist(own, own)
    usual = [one.usual for one in members]
    if any(one is None for one in usual):
        near = [(i, int(j)) for i in range(len(members)) for j in (apart[i] == 0).nonzero().flatten() if int(j) < i]
        return [(f"the same as {_place(members[j])}: duplicated", members[i]) for i, j in near[: len(members)]]
    right = torch.stack([one for one in usual if one is not None])
    between = torch.cdist(right, right)
    towards = torch.cdist(own, right)
    to_own = towards.diagonal().clone()
    nearest = towards.argmin(1).tolist()
    said = []
    for i, j in enumerate(nearest):
        if i == j or towards[i, j] >= _NEARER * to_own[i]:
            continue
        if apart[i, j] < _SAME * between[i, j]:
            said.append((f"the same as {_place(members[j])}: duplicated, their own values lost", members[i]))
        elif nearest[j] == i:
            said.append((f"{_place(members[j])}'s: swapped", members[i]))
        else:
            said.append((f"{_place(members[j])}'s: in the wrong place", members[i]))
    return said


def _placed(looks: Sequence[Look]) -> list[tuple[str, list[Look]]]:
    """Pieces in words, the experts of a layer drawn together, and layers that read alike."""
    by_layer: dict[tuple[int | None, bool], list[Look]] = defaultdict(list)
    for one in looks:
        by_layer[one.piece.layer, one.piece.expert is not None].append(one)
    alike: dict[tuple[str, str], tuple[list[int], list[Look]]] = {}
    outside = []
    for (layer, expert), members in by_layer.items():
        kinds = ", ".join(dict.fromkeys(_short(one.piece.kind) for one in members))
        if layer is None:
            outside.append((f"{kinds}:", members))
            continue
        experts = counted("expert", [one.piece.expert or 0 for one in members]) if expert else ""
        layers, gathered = alike.setdefault((experts, kinds), ([], []))
        layers.append(layer)
        gathered += members
    inside = [
        (
            f"layer{'s' if len(layers) > 1 else ''} {numbers(layers)}: {f'{experts} ({kinds})' if experts else kinds}",
            members,
        )
        for (experts, kinds), (layers, members) in alike.items()
    ]
    return inside + outside


def _place(one: Look) -> str:
    piece = one.piece
    where = f"layer {piece.layer}" if piece.layer is not None else piece.kind
    return f"{where} expert {piece.expert}" if piece.expert is not None else where


def _short(kind: str) -> str:
    """`mlp.experts.gate_up_proj` as `gate_up_proj`: what matters within a layer."""
    return re.sub(r"^(mlp|block_sparse_moe|feed_forward|ffn|self_attn)\.(experts\.)?", "", kind)


def _names(looks: Sequence[Look]) -> list[str]:
    return [one.piece.parameter + ("" if one.piece.expert is None else f"[{one.piece.expert}]") for one in looks][:8]
