"""RegMean++: RegMean whose Gram matrices are of the features that the merged model itself computes.

Layer by layer in forward order: each source's layer runs on what the merged layers below make of the source's text; its
linear layers' inputs give the Gram matrices; the layer is merged, run, and its outputs are the next layer's inputs. The
first layer reads the mean of the sources' embeddings. Within a layer the inputs are those of the source's own layer
(its attention's output, its router's choice of experts), as in the authors' algorithm; the head reads them through the
source's own final norm, which is our reading.

Nguyen et al. 2025, https://arxiv.org/abs/2508.03121.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from harc.merging.data_merge import DataMerge
from harc.merging.grams import collecting, head_inputs
from harc.merging.methods.averaging.average import weighted_mean
from harc.merging.methods.data_driven.regmean import RegmeanSettings
from harc.merging.normal_equations import NormalEquations
from harc.merging.registry import method


@dataclass(frozen=True)
class RegmeanPlusSettings(RegmeanSettings):
    """RegMean's."""


@method(
    "regmean_plus",
    label="RegMean++",
    settings=RegmeanPlusSettings,
    reference="https://arxiv.org/abs/2508.03121",
    kind="data",
    uses_base=False,
)
def merge_by_regmean_plus(job: DataMerge, settings: RegmeanPlusSettings) -> None:
    """As RegMean, with each layer's inputs those that the merged layers below compute."""
    from harc.tokens import padded_batches

    models, place = job.models, job.device
    steps = (models[0].layers + 1) * (len(models) + 1)
    batches = [list(padded_batches(data, settings.tokens_per_batch)) for data in job.data]
    tokens = [sum(map(len, data)) for data in job.data]
    with torch.inference_mode():
        with _mean_embeddings(job):
            hidden = [
                [job.kept(models[0].embed(ids.to(place), mask.to(place))) for _, ids, mask in part] for part in batches
            ]
        for index in range(models[0].layers):
            merged = NormalEquations(settings.damping, settings.divide_by)
            for source, model in enumerate(models):
                with model.loaded(index) as tensors, collecting(model.blocks[index], model.prefix + str(index)) as seen:
                    for (_, _, mask), states in zip(batches[source], hidden[source], strict=True):
                        seen.begin(mask.to(place))
                        model.run(index, states.to(place), mask.to(place))
                    merged.add(tensors, seen, job.weights[source], tokens[source])
                job.advance((index * (len(models) + 1) + source + 1) / steps)
            solved = merged.solve()
            job.write_layer(solved)
            with models[0].loaded(index) as tensors:
                for name, value in solved.items():
                    tensors[name].copy_(value)
                for part, kept in zip(batches, hidden, strict=True):
                    for each, (_, _, mask) in zip(kept, part, strict=True):
                        each.copy_(models[0].run(index, each.to(place), mask.to(place)))
            job.advance((index + 1) * (len(models) + 1) / steps)
        merged = NormalEquations(settings.damping, settings.divide_by)
        for source, model in enumerate(models):
            seen = head_inputs(model, batches[source], hidden[source])
            merged.add(model.read(None), seen, job.weights[source], tokens[source])
        job.write_layer(merged.solve())
    job.write_unused()


@contextmanager
def _mean_embeddings(job: DataMerge) -> Iterator[None]:
    """Gives the first model, for the time of the block, the sources' mean of all that lies outside the layers."""
    each = [model.outer_parameters() for model in job.models]
    own = {name: parameter.data for name, parameter in each[0].items()}
    for name, parameter in each[0].items():
        parameter.data = weighted_mean([part[name].data for part in each], job.weights)
    try:
        yield
    finally:
        for name, parameter in each[0].items():
            parameter.data = own[name]
