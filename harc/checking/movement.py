"""How far each piece moved away from the base, held against how far its sources did; and a sketch of each piece.

With task vectors d = m − b and d_i = s_i − b:

    cosines    ⟨d, d_i⟩ / ‖d‖ ‖d_i‖
    explained  ‖P d‖ / ‖d‖, P the projection on the span of the d_i: 1 for any weighted sum of them

A piece of each model is in memory at a time. A sketch is a few hundred of a piece's values at places that depend on its
size alone: enough to tell whose share of an expert a piece is, also among thousands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float64
from torch import Tensor

from harc.checking.findings import Movement
from harc.checking.pieces import Piece, Pieces

_CHUNK = 1 << 22
_SKETCH = 512
_ROUNDED = 0.01  # share of values that an average must change for an unchanged piece to be called untouched


@dataclass
class Look:
    """What was seen of one piece.

    finite, zero: of the merged piece; lost: zero, where a reference's is not. peak: its largest magnitude over the
    references'. untouched: the base's to the bit, though the sources moved; copied: index of the source that it is to
    the bit, though the sources differ. sketch, usual: of the piece and of what it should be near (the sources' mean, or
    the base).
    """

    piece: Piece
    shape: tuple[int, ...]
    finite: bool
    zero: bool = False
    lost: bool = False
    peak: float = 1.0
    rms: float = 0.0
    untouched: bool = False
    copied: int | None = None
    movement: Movement | None = None
    sketch: Tensor = field(default_factory=lambda: torch.empty(0))
    usual: Tensor | None = None


def look(piece: Piece, model: Pieces, sources: Sequence[Pieces], base: Pieces | None) -> Look | None:
    """Compares one piece with the sources' and the base's; None where the model has no whole one."""
    m = model.read(piece)
    if m is None or not m.is_floating_point() or not m.numel():
        return None
    others = [one.read(piece) for one in sources]
    b = None if base is None else base.read(piece)
    fitting = [s for s in others if s is not None and s.shape == m.shape]
    s_all = fitting if len(fitting) == len(others) else []
    b = b if b is not None and b.shape == m.shape else None
    m32 = m.float()
    if not bool(torch.isfinite(m32).all()):
        return Look(piece, tuple(m.shape), finite=False)
    seen = Look(piece, tuple(m.shape), finite=True, zero=not bool(m32.any()), rms=float(m32.square().mean().sqrt()))
    references = [*s_all, *([b] if b is not None else [])]
    seen.lost = seen.zero and any(bool(one.any()) for one in references)
    if references:
        seen.peak = float(m32.abs().max()) / max(max(float(one.float().abs().max()) for one in references), 1e-30)
    places = _places(m.numel())
    seen.sketch = m32.reshape(-1)[places]
    near = s_all or ([b] if b is not None else [])
    if near:
        seen.usual = torch.stack([one.reshape(-1)[places].float() for one in near]).mean(0)
    if not references:
        return seen
    seen.untouched = b is not None and _untouched(m, s_all, b)
    seen.copied = _copied(m, s_all)
    seen.movement = _movement(piece, m, s_all, b)
    return seen


def _untouched(m: Tensor, sources: Sequence[Tensor], b: Tensor) -> bool:
    """Whether a piece is the base's as the model stores it, where an average of the sources would not be."""
    own = b.to(m.dtype)
    if not sources or not torch.equal(m, own):
        return False
    mean = torch.stack([s.float() for s in sources]).mean(0).to(m.dtype)
    return float((mean != own).float().mean()) > _ROUNDED


def _copied(m: Tensor, sources: Sequence[Tensor]) -> int | None:
    """Which source a piece is to the bit, where all sources differ from one another as the model stores them."""
    if len(sources) < 2:
        return None
    stored = [s.to(m.dtype) for s in sources]
    found = next((index for index, s in enumerate(stored) if torch.equal(m, s)), None)
    if found is None or any(
        float((stored[found] != other).float().mean()) <= _ROUNDED for i, other in enumerate(stored) if i != found
    ):
        return None
    return found


def _movement(piece: Piece, m: Tensor, sources: Sequence[Tensor], b: Tensor | None) -> Movement:
    gram = _gram(m, sources, b)
    norms = gram.diagonal().clamp(min=0).sqrt()
    d, rest, origin = norms[0], norms[1:-1], norms[-1].clamp(min=1e-30)
    cosines = [float(gram[0, i + 1] / (d * n)) if d > 0 and n > 0 else None for i, n in enumerate(rest.tolist())]
    explained = None
    if len(rest) and d > 0:
        inner, cross = gram[1:-1, 1:-1], gram[1:-1, 0]
        inside = cross @ torch.linalg.pinv(inner, rtol=1e-9, hermitian=True) @ cross
        explained = float((inside.clamp(min=0) / gram[0, 0]).sqrt().clamp(max=1))
    return Movement(
        piece.layer,
        piece.kind,
        piece.expert,
        float(d / origin),
        (rest / origin).tolist(),
        cosines,
        explained,
        1 + float(gram[0, -1] / gram[-1, -1].clamp(min=1e-30)),
    )


def _gram(m: Tensor, sources: Sequence[Tensor], b: Tensor | None) -> Float64[Tensor, "rows rows"]:
    """The inner products of d, the d_i, and the base (without one, of the sources' mean in its place)."""
    flat = [one.reshape(-1) for one in (m, *sources)]
    gram = torch.zeros(len(flat) + 1, len(flat) + 1, dtype=torch.float64)
    for start in range(0, m.numel(), _CHUNK):
        own, *others = (one[start : start + _CHUNK].double() for one in flat)
        origin = torch.stack(others).mean(0) if b is None else b.reshape(-1)[start : start + _CHUNK].double()
        rows = torch.stack([own - origin, *(other - origin for other in others), origin])
        gram += rows @ rows.T
    return gram


@cache
def _places(count: int) -> Tensor:
    """Where a sketch of a piece of so many values is taken."""
    if count <= _SKETCH:
        return torch.arange(count)
    return torch.randint(count, (_SKETCH,), generator=torch.Generator().manual_seed(count))
