"""SCE: select the entries that vary most between task vectors, weight each by its energy, erase minority signs.

Wan et al. 2024 (FuseChat), https://arxiv.org/abs/2408.07990.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harc.merge.registry import method
from harc.merge.settings import SceSettings


@method("sce", SceSettings, reference="https://arxiv.org/abs/2408.07990")
def sce(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    density: float = 0.1,
) -> Float[Tensor, "*shape"]:
    """The base plus the weighted mean of the selected entries; `weights` play no part, SCE computes its own.

    Signs are elected by the plain sum of the task vectors, as in the paper; a vector's weight is its mean square.
    """
    task_vectors = torch.stack([source - base for source in sources])
    if density < 1:
        task_vectors *= select(task_vectors, density)
    energy = task_vectors.square().reshape(len(sources), -1).mean(dim=1)
    if not energy.sum() > 0:
        return base.clone()
    shares = (energy / energy.sum()).reshape(-1, *[1] * base.dim())
    agrees = task_vectors * torch.where(task_vectors.sum(dim=0) >= 0, 1.0, -1.0) > 0
    divisor = (shares * agrees).sum(dim=0)
    return base + (task_vectors * shares * agrees).sum(dim=0) / divisor.masked_fill(divisor == 0, 1)


def select(task_vectors: Float[Tensor, "models *shape"], density: float) -> Bool[Tensor, "*shape"]:
    """The `density` share of the entries on which the task vectors differ at all: those of largest variance."""
    variance = task_vectors.var(dim=0, unbiased=False)
    kept = int(density * torch.count_nonzero(variance))
    mask = torch.zeros(variance.numel(), dtype=torch.bool, device=variance.device)
    if kept:
        mask[variance.reshape(-1).topk(kept, sorted=False).indices] = True
    return mask.view_as(variance)
