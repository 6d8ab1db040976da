"""RegMean: each linear layer closest, in least squares, to every source's outputs on that source's own inputs.

    min over W   Σ_i w_i ‖X_i (W − W_i)ᵀ‖²      W (Σ_i w_i G_i) = Σ_i w_i W_i G_i,      G_i = X_iᵀ X_i / T_i

with G_i's off-diagonals damped. X_i are the inputs the layer really received: for an expert, the tokens routed to it,
and for its down-projection its own activations. T_i counts the source's tokens, routed or not, so that an expert that a
source hardly uses is hardly shaped by it (divide_by=source), or the rows of X_i alone (divide_by=module, the authors').

Jin et al. 2023, https://arxiv.org/abs/2212.09849.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harc.merging.data_merge import DataMerge
from harc.merging.grams import collecting, head_inputs
from harc.merging.methods.averaging.average import weighted_mean
from harc.merging.normal_equations import RIDGE, NormalEquations, damp, solve_normal_equations
from harc.merging.registry import method
from harc.merging.settings import WeightedSettings, setting


@dataclass(frozen=True)
class RegmeanSettings(WeightedSettings):
    """The damping is the paper's; the weights are equal."""

    damping: float = setting(
        0.9, "factor on the Gram matrices' off-diagonals", at_least=0, at_most=1, tries=(0.5, 0.7, 0.9)
    )
    divide_by: str = setting(
        "source",
        "what a Gram matrix is divided by: the number of the source's tokens, or of those that reached the module",
        one_of=("source", "module"),
        published=("module",),
    )
    tokens_per_batch: int = setting(8192, "tokens, padding included, that run at once", at_least=1)


@method(
    "regmean",
    label="RegMean",
    settings=RegmeanSettings,
    reference="https://arxiv.org/abs/2212.09849",
    kind="data",
    uses_base=False,
)
def merge_by_regmean(job: DataMerge, settings: RegmeanSettings) -> None:
    """Per linear layer, least squares from the Gram matrices of its inputs, each expert's from the tokens it received.

    Linear layers are routers, attention and expert projections and the head; everything else gets the mean.
    """
    from harc.tokens import padded_batches

    models = job.models
    steps = (models[0].layers + 1) * len(models)
    batches = [list(padded_batches(data, settings.tokens_per_batch)) for data in job.data]
    tokens = [sum(map(len, data)) for data in job.data]
    with torch.inference_mode():
        hidden = [
            [job.kept(model.embed(ids.to(job.device), mask.to(job.device))) for _, ids, mask in part]
            for model, part in zip(models, batches, strict=True)
        ]
        for index in range(models[0].layers):
            merged = NormalEquations(settings.damping, settings.divide_by)
            for source, model in enumerate(models):
                with model.loaded(index) as tensors, collecting(model.blocks[index], model.prefix + str(index)) as seen:
                    for number, (_, _, mask) in enumerate(batches[source]):
                        seen.begin(mask.to(job.device))
                        output = model.run(index, hidden[source][number].to(job.device), mask.to(job.device))
                        hidden[source][number].copy_(output)
                    merged.add(tensors, seen, job.weights[source], tokens[source])
                job.advance((index * len(models) + source + 1) / steps)
            job.write_layer(merged.solve())
        merged = NormalEquations(settings.damping, settings.divide_by)
        for source, model in enumerate(models):
            seen = head_inputs(model, batches[source], hidden[source])
            merged.add(model.read(None), seen, job.weights[source], tokens[source])
        job.write_layer(merged.solve())
    job.write_unused()


def regmean(
    sources: Sequence[Float[Tensor, "rows columns"]],
    grams: Sequence[Float[Tensor, "columns columns"]],
    weights: Sequence[float],
    *,
    damping: float,
    ridge: float = RIDGE,
) -> Float[Tensor, "rows columns"]:
    """The merged weight of one linear layer from its sources' weights and Gram matrices."""
    damped = [weight * damp(gram, damping) for gram, weight in zip(grams, weights, strict=True)]
    products = [source @ gram for source, gram in zip(sources, damped, strict=True)]
    mean = weighted_mean(sources, weights)
    return solve_normal_equations(torch.stack(damped).sum(0), torch.stack(products).sum(0), mean, ridge=ridge)
