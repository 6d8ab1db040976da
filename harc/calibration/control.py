"""Negative controls: changes of the routers as large as a calibration's, or as well fitted, that should not help.

random: each layer's router changed in a random direction, by the norm of the change that calibration would have made.
Layers are calibrated as ever, each behind the calibrated ones below, and only what is written is random: records and
norms are those of the calibration.
swapped: calibration as it is, but each domain's text with another domain's source.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Control = Literal["none", "random", "swapped"]
T = TypeVar("T")


def swapped(sources: Sequence[T]) -> list[T]:
    """The sources, each in the place of the one before it, so that every domain's text meets another's source.

    Raises:
        ValueError: fewer than two.
    """
    if len(sources) < 2:
        raise ValueError(f"control=swapped swaps domains: at least two sources are needed, found {len(sources)}")
    return [*sources[1:], sources[0]]


def random_change(
    before: Float[Tensor, "experts hidden"], after: Float[Tensor, "experts hidden"]
) -> Float[Tensor, "experts hidden"]:
    """`before` changed in a random direction by ‖after − before‖ (Frobenius), in its dtype.

    The direction is Gaussian, drawn by a seed that is made of `before`: the same for the same router wherever it is
    drawn, another for another router.
    """
    seed = zlib.crc32(before.detach().cpu().contiguous().float().numpy().tobytes())
    direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    change = after.cpu().double() - before.cpu().double()
    return (before.cpu().double() + change.norm() / direction.norm() * direction).to(before.dtype)
