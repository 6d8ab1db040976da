"""Fisher merging: θ = Σ w_i F_i θ_i / Σ w_i F_i, entry by entry, F_i the diagonal Fisher information of source i.

    score=sequence   F = Σ_s (∇ Σ_t log p(y_t | y_<t))² / Σ_s |response_s|
    score=batch      F = mean over b of (∇ 1/T_b Σ_{s in b} Σ_t log p(y_t | y_<t))², T_b = Σ_{s in b} |response_s|

summed over sequences s and their response tokens t. The first is a diagonal of the Fisher matrix, and its division by
tokens makes domains of longer responses no heavier; the second, what the paper's authors compute, shrinks with the
batch. Labels y are the data's (the empirical Fisher) or drawn from the model at each position (the Fisher proper).

Matena and Raffel 2022, https://arxiv.org/abs/2111.09832.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.data_merge import DataMerge
from harc.merging.information import FisherStore, add_fisher_information
from harc.merging.registry import method
from harc.merging.settings import WeightedSettings, setting


@dataclass(frozen=True)
class FisherSettings(WeightedSettings):
    """The defaults are ours; the published values are those of the paper's authors' code."""

    labels: str = setting(
        "empirical",
        "`empirical`: the data's response tokens; `sampled`: tokens drawn from the model at each position",
        one_of=("empirical", "sampled"),
    )
    score: str = setting(
        "sequence",
        "whose gradient is squared: a sequence's summed log-likelihood, or a batch's mean loss",
        one_of=("sequence", "batch"),
        published=("batch",),
    )
    batch_size: int = setting(64, "sequences in a batch with score=batch; 64 in the authors' code", at_least=1)
    normalize: bool = setting(
        True,
        "give every source's information the same norm, so that a source with a steeper loss does not outvote the rest",
        published=(False,),
    )
    floor: float = setting(
        1e-6, "added to every entry's information, relative to its tensor's mean", at_least=0, published=(0.0,)
    )
    smoothing: float = setting(
        0.0, "added to every entry's information, in its own unit", at_least=0, published=(1e-10,)
    )
    activation_gb: float = setting(2.0, "memory for hidden states of score=sequence, in gigabytes", above=0)


@method(
    "fisher",
    label="Fisher Merging",
    settings=FisherSettings,
    reference="https://arxiv.org/abs/2111.09832",
    kind="data",
    uses_base=False,
    random=True,
    reads="response tokens",
    scratch_bytes=4,
)
def merge_by_fisher(job: DataMerge, settings: FisherSettings) -> None:
    """Mean weighted by each source's diagonal Fisher information, from gradients of its response tokens' likelihood.

    The information waits in scratch files between the two passes.
    """
    models = job.models
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=".fisher-") as folder:
        stores = []
        for source, (model, data) in enumerate(zip(models, job.data, strict=True)):
            store = FisherStore(Path(folder) / str(source))
            generator = torch.Generator().manual_seed(job.seed + source)
            batch = settings.batch_size if settings.score == "batch" else None
            measured = add_fisher_information(
                model, data, store, generator,
                labels=settings.labels, batch=batch, activation_gb=settings.activation_gb,
            )  # fmt: skip
            for share in measured:
                job.advance((source + share) / len(models))
            stores.append(store)
        scales = [1 / store.norm() if settings.normalize and store.norm() > 0 else 1.0 for store in stores]
        for index in (*range(models[0].layers), None):
            tensors = [model.read(index) for model in models]
            merged = {}
            for name in tensors[0]:
                values = [part[name].to("cpu", torch.float32) for part in tensors]
                found = [store.get(name) for store in stores]
                information = [
                    torch.zeros_like(values[0]) if part is None else part * scale
                    for part, scale in zip(found, scales, strict=True)
                ]
                merged[name] = fisher_mean(
                    values, information, job.weights, floor=settings.floor, smoothing=settings.smoothing
                )
            job.write_layer(merged)
    job.write_unused()


def fisher_mean(
    sources: Sequence[Float[Tensor, "*shape"]],
    information: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    floor: float,
    smoothing: float,
) -> Float[Tensor, "*shape"]:
    """The Fisher-weighted mean. Entries (and whole tensors) no source has information on get the weighted mean.

    Args:
        sources: the values to merge.
        information: of each source, not negative.
        weights: one per source.
        floor: added to every entry, relative to the mean over the tensor and its sources.
        smoothing: added to every entry.
    """
    added = floor * float(sum(values.mean() for values in information)) / len(information) + smoothing
    added = added if added > 0 else 1.0
    total = torch.zeros_like(sources[0])
    correction = torch.zeros_like(sources[0])
    for source, values, weight in zip(sources, information, weights, strict=True):
        share = weight * (values + added)
        total += share
        correction += share * (source - sources[0])  # of the first source: equal sources give themselves back
    return sources[0] + correction / total
