"""The drivers of the methods that run their sources on data: Fisher and RegMean, one layer at a time.

Both work on the model's own parameters (fused experts among them) and hand published tensors to `write`.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.merge.average import average
from harc.merge.fisher import fisher
from harc.merge.grams import collecting
from harc.merge.layerwise import LayerwiseModel
from harc.merge.registry import method
from harc.merge.regmean import damp, solve_normal_equations
from harc.merge.settings import FisherSettings, RegmeanSettings
from harc.tokens import TokenSequence, padded_batches


@dataclass
class DataMerge:
    """One merge on data, as the driver of a method gets it.

    advance: called after each unit of work, of `units(...)` in all. scratch: a folder for temporary files.
    """

    sources: list[Checkpoint]
    data: list[list[TokenSequence]]
    weights: list[float]
    dtype: torch.dtype
    device: torch.device
    seed: int
    scratch: Path
    write: Callable[[str, Tensor], None]
    progress: Callable[[str, int, int], None]

    def models(self) -> list[LayerwiseModel]:
        """The sources, without their layers."""
        return [LayerwiseModel(source, dtype=self.dtype, device=self.device) for source in self.sources]

    def write_rest(self, model: LayerwiseModel) -> None:
        """Writes the mean of tensors that the model class does not use."""
        for name in model.unused_keys:
            self.write(name, average(None, [source.read(name).float() for source in self.sources], self.weights))


@method("regmean", RegmeanSettings, reference="https://arxiv.org/abs/2212.09849", kind="data", uses_base=False)
def merge_by_regmean(job: DataMerge, settings: RegmeanSettings) -> None:
    """RegMean of the routers, attention and expert projections and the head; the mean of everything else."""
    models = job.models()
    batches = [list(padded_batches(data, settings.tokens_per_batch)) for data in job.data]
    with torch.inference_mode():
        hidden = [[model.embed(ids, mask).cpu() for _, ids, mask in part] for model, part in zip(models, batches, strict=True)]
        for index in range(len(models[0])):
            merged = _RegmeanSum(settings.damping)
            for source, (model, part) in enumerate(zip(models, batches, strict=True)):
                with model.loaded(index) as tensors, collecting(model.layers[index], f"{model._prefix}{index}") as collector:
                    for number, (_, ids, mask) in enumerate(part):
                        collector.begin(mask.to(job.device))
                        output = model.layer(index, ids, mask, hidden[source][number].to(job.device))
                        hidden[source][number] = output.cpu()
                    merged.add(tensors, collector.grams, job.weights[source], sum(map(len, job.data[source])))
                job.progress("regmean", index * len(models) + source + 1, (len(models[0]) + 1) * len(models))
            _write(job, models[0], merged.solve(model.layers[index]))
        _regmean_outside(job, settings, models, batches, hidden)
    job.write_rest(models[0])


def _regmean_outside(job: DataMerge, settings: RegmeanSettings, models: list, batches: list, hidden: list) -> None:
    merged = _RegmeanSum(settings.damping)
    for source, (model, part) in enumerate(zip(models, batches, strict=True)):
        parameters = model.outer_parameters()
        head = model.model.get_output_embeddings()
        name = next((name for name, value in parameters.items() if head is not None and value is head.weight), None)
        grams = {}
        if name is not None and head.weight is not model.model.get_input_embeddings().weight:
            grams[name] = torch.zeros(head.weight.shape[1], head.weight.shape[1], device=job.device)
            for (_, ids, mask), states in zip(part, hidden[source], strict=True):
                rows = model.final(ids, mask, states.to(job.device))[mask.to(job.device).bool()].float()
                grams[name] += rows.mT @ rows
        merged.add(model.read(None), grams, job.weights[source], sum(map(len, job.data[source])))
        done = len(models[0]) * len(models) + source + 1
        job.progress("regmean", done, (len(models[0]) + 1) * len(models))
    _write(job, models[0], merged.solve(models[0].model))


class _RegmeanSum:
    """Σ w G and Σ w W G over the sources, so that memory does not grow with their number."""

    def __init__(self, damping: float) -> None:
        self.damping, self.total = damping, 0.0
        self.means: dict[str, Tensor] = {}
        self.grams: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}
        self.transposed: set[str] = set()

    def add(self, tensors: dict[str, Tensor], grams: dict[str, Tensor], weight: float, tokens: int) -> None:
        self.total += weight
        for name, tensor in tensors.items():
            tensor = tensor.float()
            # A running mean: equal sources give themselves back, without rounding.
            mean = self.means.setdefault(name, tensor.clone())
            mean.lerp_(tensor, weight / self.total)
            if name not in grams:
                continue
            gram = damp(grams[name], self.damping).mul_(weight / max(tokens, 1))
            oriented = tensor if tensor.shape[-1] == gram.shape[-1] else tensor.mT
            product = oriented @ gram
            self.grams[name] = self.grams[name] + gram if name in self.grams else gram
            self.products[name] = self.products[name] + product if name in self.products else product

    def solve(self, module: torch.nn.Module) -> dict[str, Tensor]:
        for name, gram in self.grams.items():
            mean, product = self.means[name], self.products[name]
            turned = mean.shape[-1] != gram.shape[-1]
            oriented = mean.mT if turned else mean
            if gram.dim() == 2:
                solved = solve_normal_equations(gram, product, oriented)
            else:
                solved = torch.stack([solve_normal_equations(*each) for each in zip(gram, product, oriented, strict=True)])
            self.means[name] = solved.mT if turned else solved
        return self.means


@method("fisher", FisherSettings, reference="https://arxiv.org/abs/2111.09832", kind="data", uses_base=False)
def merge_by_fisher(job: DataMerge, settings: FisherSettings) -> None:
    """Fisher-weighted mean of every tensor; the information waits in scratch files between the two passes."""
    models = job.models()
    total = len(models) * (len(models[0]) + 1)
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=".fisher-") as folder:
        stores = []
        for source, (model, data) in enumerate(zip(models, job.data, strict=True)):
            store = FisherStore(Path(folder) / str(source))
            generator = torch.Generator().manual_seed(job.seed + source)
            for done in _fisher_information(model, data, settings, store, generator):
                job.progress("fisher", source * (len(model) + 1) + done, total)
            stores.append(store)
        scales = [1 / store.norm() if settings.normalize and store.norm() > 0 else 1.0 for store in stores]
        for index in [*range(len(models[0])), None]:
            tensors = [model.read(index) for model in models]
            merged = {}
            for name in tensors[0]:
                values = [part[name].float() for part in tensors]
                if not tensors[0][name].is_floating_point() or not stores[0].has(name):
                    merged[name] = average(None, values, job.weights)
                    continue
                information = [store.get(name) * scale for store, scale in zip(stores, scales, strict=True)]
                merged[name] = fisher(values, information, job.weights, floor=settings.floor)
            _write(job, models[0], merged)
    job.write_rest(models[0])
