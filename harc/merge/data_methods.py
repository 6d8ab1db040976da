"""The drivers of the methods that run their sources on data: Fisher and RegMean, one layer at a time.

Both work on the model's own parameters (fused experts among them) and write them under their published names.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.merge.average import average
from harc.merge.fisher import fisher
from harc.merge.grams import collecting
from harc.merge.information import FisherStore, add_fisher_information
from harc.merge.registry import method
from harc.merge.regmean import damp, solve_normal_equations
from harc.merge.settings import FisherSettings, RegmeanSettings
from harc.streaming import LayerStream
from harc.tokens import TokenSequence, padded_batches


@dataclass
class DataMerge:
    """One merge on data, as its driver gets it.

    dtype, device: what the sources are run in; scratch: a folder for temporary files; write: takes a published name and
    its tensor; advance: takes the share of the work done.
    """

    sources: list[Checkpoint]
    data: list[list[TokenSequence]]
    weights: list[float]
    dtype: torch.dtype
    device: torch.device
    seed: int
    scratch: Path
    write: Callable[[str, Tensor], None]
    advance: Callable[[float], None]

    def __post_init__(self) -> None:
        self.models = [LayerStream(source, dtype=self.dtype, device=self.device) for source in self.sources]
        for model in self.models:
            model.load_outer()

    def write_layer(self, tensors: dict[str, Tensor]) -> None:
        """Writes parameters under their published names."""
        for name, tensor in self.models[0].parameters.published(tensors).items():
            self.write(name, tensor)

    def write_unused(self) -> None:
        """Writes the mean of tensors that the model class makes no use of."""
        for name in self.models[0].parameters.unused:
            self.write(name, average(None, [source.read(name).float() for source in self.sources], self.weights))


@method("regmean", RegmeanSettings, reference="https://arxiv.org/abs/2212.09849", kind="data", uses_base=False)
def merge_by_regmean(job: DataMerge, settings: RegmeanSettings) -> None:
    """RegMean of the routers, attention and expert projections and the head; the mean of everything else."""
    models = job.models
    steps = (models[0].layers + 1) * len(models)
    batches = [list(padded_batches(data, settings.tokens_per_batch)) for data in job.data]
    tokens = [sum(map(len, data)) for data in job.data]
    with torch.inference_mode():
        hidden = [
            [model.embed(ids.to(job.device), mask.to(job.device)).cpu() for _, ids, mask in part]
            for model, part in zip(models, batches, strict=True)
        ]
        for index in range(models[0].layers):
            merged = _RegmeanSum(settings.damping)
            for source, model in enumerate(models):
                with model.loaded(index) as tensors, collecting(model.blocks[index], model.prefix + str(index)) as seen:
                    for number, (_, _, mask) in enumerate(batches[source]):
                        seen.begin(mask.to(job.device))
                        output = model.run(index, hidden[source][number].to(job.device), mask.to(job.device))
                        hidden[source][number] = output.cpu()
                    merged.add(tensors, seen.grams, job.weights[source], tokens[source])
                job.advance((index * len(models) + source + 1) / steps)
            job.write_layer(merged.solve())
        merged = _RegmeanSum(settings.damping)
        for source, model in enumerate(models):
            grams = _head_gram(model, batches[source], hidden[source])
            merged.add(model.read(None), grams, job.weights[source], tokens[source])
        job.write_layer(merged.solve())
    job.write_unused()


def _head_gram(model: LayerStream, batches: list, hidden: list[Tensor]) -> dict[str, Tensor]:
    """The Gram matrix of the head's input; none for a head that is the embeddings, or missing."""
    head, embeddings = model.model.get_output_embeddings(), model.model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        return {}
    name = next(name for name, value in model.outer_parameters().items() if value is head.weight)
    gram = torch.zeros(head.weight.shape[1], head.weight.shape[1], device=model.device)
    for (_, _, mask), states in zip(batches, hidden, strict=True):
        mask = mask.to(model.device)
        x = model.final(states.to(model.device), mask)[mask.bool()].float()
        gram += x.mT @ x
    return {name: gram}


class _RegmeanSum:
    """Σ w G and Σ w W G over the sources, so that memory does not grow with their number."""

    def __init__(self, damping: float) -> None:
        self.damping, self.weight = damping, 0.0
        self.means: dict[str, Tensor] = {}
        self.grams: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}

    def add(self, tensors: dict[str, Tensor], grams: dict[str, Tensor], weight: float, tokens: int) -> None:
        """Adds a source: its parameters, the Gram matrices of its inputs, its weight and number of tokens."""
        self.weight += weight
        for name, tensor in tensors.items():
            if name not in self.means:
                self.means[name] = tensor.float().clone()
            else:
                self.means[name].lerp_(tensor.float(), weight / self.weight)
            if name in grams:
                gram = damp(grams[name], self.damping).mul_(weight / max(tokens, 1))
                product = _oriented(tensor.float(), gram) @ gram
                self.grams[name] = self.grams[name] + gram if name in self.grams else gram
                self.products[name] = self.products[name] + product if name in self.products else product

    def solve(self) -> dict[str, Tensor]:
        """The merged parameters: the solution where there are Gram matrices, the weighted mean elsewhere."""
        merged = dict(self.means)
        for name, gram in self.grams.items():
            mean = _oriented(self.means[name], gram)
            each = zip(*(t.reshape(-1, *t.shape[-2:]) for t in (gram, self.products[name], mean)), strict=True)
            solved = torch.stack([solve_normal_equations(*matrices) for matrices in each]).view_as(mean)
            merged[name] = _oriented(solved, self.means[name])
        return merged


def _oriented(weight: Tensor, like: Tensor) -> Tensor:
    """The weight, transposed if its last dimension is not that of `like`: some models store inputs × outputs."""
    return weight if weight.shape[-1] == like.shape[-1] else weight.mT


@method("fisher", FisherSettings, reference="https://arxiv.org/abs/2111.09832", kind="data", uses_base=False)
def merge_by_fisher(job: DataMerge, settings: FisherSettings) -> None:
    """The Fisher-weighted mean of every parameter; the information waits in scratch files between the two passes."""
    models = job.models
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=".fisher-") as folder:
        stores = []
        for source, (model, data) in enumerate(zip(models, job.data, strict=True)):
            store = FisherStore(Path(folder) / str(source))
            generator = torch.Generator().manual_seed(job.seed + source)
            for share in add_fisher_information(model, data, settings, store, generator):
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
                merged[name] = fisher(values, information, job.weights, floor=settings.floor)
            job.write_layer(merged)
    job.write_unused()
