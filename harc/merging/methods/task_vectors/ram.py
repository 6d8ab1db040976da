"""RAM, Reinforced Agent Merging: the mean of the task vectors where several moved, the one that moved alone as it is.

    τ(entry) = mean of the τ_i with |τ_i| > ε,  where two or more have moved
             = (1 + r · min(ρ_i, α)) τ_i,       where only source i has,    ρ_i = entries it shares / entries of its own

Made for models tuned by reinforcement learning, whose task vectors are sparse: those of supervised fine-tuning move
nearly every entry, and RAM is then nearly the mean. r = 0 is RAM. r > 0 is RAM+, whose ρ_i the paper takes over the
whole model; here, as in mergekit's `ramplus_tl`, over one tensor.

Yuan et al. 2026, https://arxiv.org/abs/2601.13572.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.registry import method
from harc.merging.settings import MergeSettings, setting


@dataclass(frozen=True)
class RamSettings(MergeSettings):
    """RAM has no weights; the defaults are mergekit's, after the paper."""

    threshold: float = setting(1e-5, "ε, the change of an entry above which it has moved", at_least=0)
    rescale: float = setting(
        0.0, "r, how much the entries of one source alone grow; 0.1 is RAM+", at_least=0, tries=(0.0, 0.1)
    )
    limit: float = setting(0.2, "α, the largest ratio of shared to own entries that counts, with rescale", at_least=0)


@method("ram", label="RAM", settings=RamSettings, reference="https://arxiv.org/abs/2601.13572")
def ram(
    base: Float[Tensor, "*shape"],
    sources: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    settings: RamSettings,
) -> Float[Tensor, "*shape"]:
    """Averages the entries that several sources moved, and keeps those that one source moved alone."""
    moved = [(source - base).abs() > settings.threshold for source in sources]
    count = torch.stack(moved).sum(dim=0)
    merged = base.clone()
    for source, own in zip(sources, moved, strict=True):
        shared, alone = own & (count > 1), own & (count == 1)
        ratio = int(shared.sum()) / max(int(alone.sum()), 1)
        factor = torch.where(alone, 1 + settings.rescale * min(ratio, settings.limit), 1 / count.clamp(min=1))
        merged.add_((source - base) * factor * own)
    return merged
