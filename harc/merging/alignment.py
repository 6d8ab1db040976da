"""Which expert of one model is which of another's: by assignment, layer by layer.

    S[e, f] = mean over kinds of cos(reference's expert e, other's expert f),   max over permutations π  Σ_e S[e, π(e)]

A kind is a router's rows, or one of an expert's matrices (gate, up, down, or the two that a fused layout has).
Fine-tunes of one base have their experts in its order, and π is the identity. Models that were trained apart may number
their experts otherwise; their hidden units differ as well, which no order of experts mends. Where a router chooses
among groups of experts, only an order that keeps the groups together leaves what a model computes as it is.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from harc.checkpoint import Checkpoint, CheckpointError, TensorInfo
from harc.merging.experts import LayerExperts, find_experts
from harc.models.routers import NoRouterError

logger = logging.getLogger(__name__)

_COLUMNS = 1 << 16  # of all experts of a layer, in float32 at a time


@dataclass(frozen=True)
class LayerMatch:
    """One layer's matching.

    layer: the decoder layer.
    order: π, for each of the reference's experts the other model's.
    similarity: the mean cosine of the pairs that π makes.
    in_place: the mean cosine of the pairs as they are numbered.
    """

    layer: int
    order: list[int]
    similarity: float
    in_place: float

    @property
    def identity(self) -> bool:
        """Whether every expert is where the reference has it."""
        return self.order == list(range(len(self.order)))


def match_experts(
    reference: Checkpoint, other: Checkpoint, layers: Iterable[LayerExperts], *, routers_only: bool = False
) -> list[LayerMatch]:
    """Matches the experts of two checkpoints of one architecture, one layer in memory at a time.

    Args:
        reference: whose order counts.
        other: whose experts are looked up.
        layers: where each layer's experts lie, see `harc.merging.experts.find_experts`.
        routers_only: compare router rows alone, a thousandth of the reading.
    """
    found = []
    for experts in layers:
        kinds = experts.kinds(reference)[: 1 if routers_only else None]
        similarity = torch.zeros(experts.count, experts.count, dtype=torch.float64)
        for kind in kinds:
            similarity += cosines(experts.read(reference, kind), experts.read(other, kind)) / len(kinds)
        order = assign(similarity)
        every = torch.arange(experts.count)
        pairs = similarity[every, torch.tensor(order)]
        found.append(LayerMatch(experts.layer, order, float(pairs.mean()), float(similarity.diagonal().mean())))
    return found


def assign(similarity: Float[Tensor, "experts experts"]) -> list[int]:
    """The permutation π with the largest Σ_e S[e, π(e)]; the identity where it is as good as any."""
    _, order = linear_sum_assignment(similarity.numpy(), maximize=True)
    every = torch.arange(len(similarity))
    best, in_place = similarity[every, torch.from_numpy(order)].sum(), similarity.diagonal().sum()
    return every.tolist() if in_place >= best else order.tolist()


def cosines(
    first: Float[Tensor, "experts entries"], second: Float[Tensor, "experts entries"]
) -> Float[Tensor, "experts experts"]:
    """Cosine of every row of the first with every row of the second, in float64; 0 for a row of zeros."""
    products = torch.zeros(len(first), len(second), dtype=torch.float64)
    squares = [torch.zeros(len(part), dtype=torch.float64) for part in (first, second)]
    step = max(1, _COLUMNS // len(first))
    for a, b in zip(first.split(step, dim=1), second.split(step, dim=1), strict=True):
        a, b = a.double(), b.double()
        products += a @ b.mT
        for total, part in zip(squares, (a, b), strict=True):
            total += part.square().sum(dim=1)
    scale = torch.outer(squares[0].sqrt(), squares[1].sqrt())
    return torch.where(scale > 0, products / scale, 0)


@dataclass(frozen=True)
class Aligned(Checkpoint):
    """A checkpoint with the experts of some layers in another order, permuted tensor by tensor when they are read.

    stored: the checkpoint as it is; renamed: for the name of one expert's tensor, the name it is stored under; orders:
    for a tensor of all experts, the dimension that counts them and their order.
    """

    stored: Checkpoint
    renamed: dict[str, str] = field(default_factory=dict)
    orders: dict[str, tuple[int, list[int]]] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        return self.stored.files

    def read(self, name: str) -> Tensor:
        """Reads one tensor, its experts in the new order.

        Raises:
            CheckpointError: no such tensor, or its bytes cannot be read.
        """
        tensor = self.stored.read(self.renamed.get(name, name))
        if name not in self.orders:
            return tensor
        dim, order = self.orders[name]
        return tensor.index_select(dim, torch.tensor(order))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads rows start … stop − 1 (first dimension) of a tensor, its experts in the new order."""
        if name not in self.orders:
            return self.stored.read_rows(self.renamed.get(name, name), start, stop)
        dim, order = self.orders[name]
        if dim:
            return self.stored.read_rows(name, start, stop).index_select(dim, torch.tensor(order))
        return torch.cat([self.stored.read_rows(name, row, row + 1) for row in order[start:stop]])


def aligned(checkpoint: Checkpoint, layers: Iterable[LayerExperts], matches: Iterable[LayerMatch]) -> Checkpoint:
    """A view of a checkpoint with its experts in the reference's order; itself where they are in order already.

    Routers' rows and biases, selection biases and every tensor of an expert are permuted alike, so that the model
    computes what it did.
    """
    renamed: dict[str, str] = {}
    orders: dict[str, tuple[int, list[int]]] = {}
    for experts, match in zip(layers, matches, strict=True):
        if match.identity:
            continue
        for keys in experts.one_each:
            renamed.update({key: keys[source] for key, source in zip(keys, match.order, strict=True)})
        orders.update({key: (dim, match.order) for key, dim in experts.of_all.items()})
    if not renamed and not orders:
        return checkpoint
    tensors: dict[str, TensorInfo] = {name: checkpoint.tensors[renamed.get(name, name)] for name in checkpoint}
    return Aligned(checkpoint.source, checkpoint.folder, checkpoint.config, tensors, checkpoint, renamed, orders)


@dataclass(frozen=True)
class Ordered:
    """Sources with their experts in the reference's order, if that was asked for.

    sources: what is merged; matches: by source, a match a layer; words: the same in a line each.
    """

    sources: list[Checkpoint]
    matches: dict[str, list[LayerMatch]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def order_experts(reference: Checkpoint, sources: list[Checkpoint], *, apply: bool) -> Ordered:
    """Matches every source's experts with the reference's: by all their weights if they are to be put in order.

    Without `apply`, by router rows alone, and a source in another order is warned of; a model whose experts cannot be
    found has no matches then.

    Raises:
        NoRouterError, CheckpointError: with `apply`, experts that cannot be found.
    """
    try:
        layers = find_experts(reference)
    except (NoRouterError, CheckpointError):
        if apply:
            raise
        return Ordered(sources)  # a dense model, or one whose routers are none that can be calibrated: nothing to say
    found = Ordered([])
    for source in sources:
        if source is reference:
            found.sources.append(source)
            continue
        matches = match_experts(reference, source, layers, routers_only=not apply)
        words = in_words(matches, applied=apply)
        if not apply and not all(match.identity for match in matches):
            logger.warning("%s: %s; merge with align=true to put them in the reference's order", source.source, words)
        found.sources.append(aligned(source, layers, matches) if apply else source)
        found.matches[source.source], found.words[source.source] = matches, words
    return found


def in_words(matches: list[LayerMatch], *, applied: bool) -> str:
    """One line: whether the experts are in the reference's order, and if not in which layers."""
    by = "router rows and expert weights" if applied else "router rows"
    least = min(match.similarity for match in matches)
    moved = [match for match in matches if not match.identity]
    how = f"matched by {by}, mean cosine at least {least:.2f}"
    if not moved:
        return f"experts in the reference's order in all {len(matches)} layers ({how})"
    places = ", ".join(str(match.layer) for match in moved)
    done = "put in order" if applied else "another order"
    return f"experts: {done} in {len(moved)} of {len(matches)} layers: {places} ({how})"
