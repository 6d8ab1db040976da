"""Fisher merging: θ = Σ w_i F_i θ_i / Σ w_i F_i, entry by entry, F_i the diagonal Fisher information of source i.

    F = Σ_s (∇ Σ_t log p(y_t | y_<t))² / Σ_s |response_s|

summed over sequences s and their response tokens t. The score of a sequence is squared, not that of a batch, and the
division by tokens makes domains of longer responses no heavier. Labels y are the data's (the empirical Fisher) or drawn
from the model at each position (the Fisher proper).

Matena and Raffel 2022, https://arxiv.org/abs/2111.09832.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def fisher(
    sources: Sequence[Float[Tensor, "*shape"]],
    information: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    floor: float = 1e-6,
) -> Float[Tensor, "*shape"]:
    """The Fisher-weighted mean. Entries (and whole tensors) no source has information on get the weighted mean.

    floor: added to every entry, relative to the mean over the tensor and its sources.
    """
    added = floor * float(sum(values.mean() for values in information)) / len(information)
    added = added if added > 0 else 1.0
    total = torch.zeros_like(sources[0])
    correction = torch.zeros_like(sources[0])
    for source, values, weight in zip(sources, information, weights, strict=True):
        share = weight * (values + added)
        total += share
        correction += share * (source - sources[0])  # of the first source: equal sources give themselves back
    return sources[0] + correction / total
