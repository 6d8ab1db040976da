"""Model Stock: between the base and the mean of the sources, as far as the angle between the task vectors says.

    θ = θ_base + t · mean_i τ_i,    t = N cos φ / (1 + (N − 1) cos φ)

cos φ is the mean cosine between two of the N task vectors of a layer. Each published tensor is a layer, and where a
tensor holds the matrices of several experts, each matrix. Vectors that point apart (cos φ < 0) have no such point
between base and mean; the base is kept there, which is our reading.

Jang et al. 2024, https://arxiv.org/abs/2403.19522.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import MergeSettings


@method("model_stock", label="Model Stock", reference="https://arxiv.org/abs/2403.19522")
def model_stock(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: MergeSettings,
) -> Float[Tensor, "*shape"]:
    """From the base towards the mean of the sources, the further the smaller the angle between their task vectors."""
    task_vectors = [source - base for source in sources]
    merged = torch.zeros_like(base)
    for task_vector in task_vectors:
        merged.add_(task_vector, alpha=1 / len(sources))
    return base + ratio(task_vectors) * merged


def ratio(task_vectors: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "..."]:
    """t, for the whole tensor, or for each of its matrices where it has three dimensions or more."""
    count = len(task_vectors)
    dims = (-2, -1) if task_vectors[0].dim() > 2 else tuple(range(task_vectors[0].dim()))
    if count == 1:
        return task_vectors[0].new_ones(())
    norms = [torch.linalg.vector_norm(one, dim=dims, keepdim=True) for one in task_vectors]
    cosine = torch.zeros_like(norms[0])
    for i, j in combinations(range(count), 2):
        product = (task_vectors[i] * task_vectors[j]).sum(dim=dims, keepdim=True)
        scale = norms[i] * norms[j]
        cosine += torch.where(scale > 0, product / scale, 0)  # a source that did not move is at right angles to all
    cosine = (cosine * 2 / (count * (count - 1))).clamp(min=0, max=1)
    return count * cosine / (1 + (count - 1) * cosine)
