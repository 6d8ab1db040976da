"""Diagonal Fisher information of a source on its data, one layer at a time.

A chunk of sequences goes up through the layers, keeping each layer's inputs, and back down: a layer's weights are in
memory only while it runs, its squared gradients only until they are added to a file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from harc.models.streaming import LayerStream
    from harc.tokens import TokenSequence


class FisherStore:
    """Sums of squared scores by parameter name, in float32, in memory-mapped files; `count` is what they divide by."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, name: str, values: Tensor) -> None:
        """Adds squared scores to a parameter's sum."""
        if name not in self._sums:
            file = self._folder / f"{len(self._sums)}.f32"
            with file.open("wb") as stream:
                stream.truncate(max(4 * values.numel(), 1))
            mapped = torch.from_file(str(file), shared=True, size=values.numel(), dtype=torch.float32)
            self._sums[name] = mapped.view(values.shape)
        self._sums[name] += values.to("cpu", torch.float32)

    def get(self, name: str) -> Tensor | None:
        """The Fisher information of a parameter; None for one that got none."""
        return self._sums[name] / max(self.count, 1) if name in self._sums else None

    def norm(self) -> float:
        """Frobenius norm of the information over the whole model."""
        squares = sum(float(torch.linalg.vector_norm(values)) ** 2 for values in self._sums.values())
        return squares**0.5 / max(self.count, 1)


def add_fisher_information(
    model: "LayerStream",
    data: "Sequence[TokenSequence]",
    store: FisherStore,
    generator: torch.Generator,
    *,
    labels: str,
    batch: int | None,
    activation_gb: float,
) -> Iterator[float]:
    """Fills `store`; yields the share of the work done, one step per layer.

    Args:
        model: the source, with embeddings, final norm and head loaded.
        data: its sequences; those without a response are left out.
        store: where the squared scores are added.
        generator: draws the labels that are `sampled`.
        labels: `empirical` or `sampled`.
        batch: None squares the gradient of each sequence's summed log-likelihood, and divides by response tokens; a
            number squares the gradient of the mean loss of so many sequences, and divides by batches.
        activation_gb: memory for hidden states where sequences are squared one by one, in gigabytes.
    """
    answered = [sequence for sequence in data if _answered(sequence)]
    if batch is None:
        width = model.model.get_input_embeddings().weight.shape[1]
        per_token = (model.layers + 2) * width * model.dtype.itemsize
        chunks = list(_chunks(answered, int(activation_gb * 1e9 / per_token)))
    else:
        chunks = [answered[first : first + batch] for first in range(0, len(answered), batch)]
    steps = 2 * model.layers + 2
    for number, chunk in enumerate(chunks):
        pass_ = _Pass(model, chunk, store, together=batch is not None)
        for step, _ in enumerate(pass_.run(labels, generator), start=1):
            yield (number + step / steps) / len(chunks)
    store.count += sum(map(_answered, answered)) if batch is None else len(chunks)


def _answered(sequence: "TokenSequence") -> int:
    """How many tokens of the response are predicted from a token before them."""
    return max(len(sequence) - max(sequence.response_start, 1), 0)


class _Pass:
    """One chunk of sequences up and down the model; together: the gradient of all of them's mean loss is squared."""

    def __init__(
        self, model: "LayerStream", sequences: "Sequence[TokenSequence]", store: FisherStore, *, together: bool
    ) -> None:
        self.model, self.sequences, self.store = model, sequences, store
        numbers = list(range(len(sequences)))
        self.groups = [numbers] if together else [[number] for number in numbers]  # squared at once
        self.divisor = sum(map(_answered, sequences)) if together else 1
        self.ids = [sequence.ids[None].to(model.device) for sequence in sequences]
        self.masks = [torch.ones_like(ids) for ids in self.ids]
        embeddings, head = model.model.get_input_embeddings(), model.model.get_output_embeddings()
        self.tied = embeddings.weight if head is not None and head.weight is embeddings.weight else None
        self.head_rows: list[Tensor] = []  # of tied embeddings: the head's part of the rows that a group's text uses

    def run(self, labels: str, generator: torch.Generator) -> Iterator[None]:
        model = self.model
        with torch.no_grad():
            inputs = [[model.embed(i, m).cpu() for i, m in zip(self.ids, self.masks, strict=True)]]
            yield
            for index in range(model.layers):
                with model.loaded(index):
                    each = zip(self.masks, inputs[-1], strict=True)
                    inputs.append([model.run(index, x.to(model.device), mask).cpu() for mask, x in each])
                yield
        slopes = self._head(inputs.pop(), labels, generator)
        for index in reversed(range(model.layers)):
            slopes = self._layer(index, inputs.pop(), slopes)
            yield
        self._embeddings(slopes)
        yield

    def _head(self, inputs: list[Tensor], labels: str, generator: torch.Generator) -> list[Tensor]:
        parameters = self.model.outer_parameters()
        slopes = []
        with torch.enable_grad(), _Scores(parameters, self.store) as scores:
            for group in self.groups:
                for number in group:
                    x = inputs[number].to(self.model.device).requires_grad_()
                    loss = self._loss(number, self.model.logits(x, self.masks[number]), labels, generator)
                    loss.backward()
                    slopes.append(_gradient(x).cpu())
                if self.tied is not None:
                    used, gradient = self._used(group), _gradient(self.tied)
                    self.head_rows.append(gradient[used].cpu())
                    gradient[used] = 0
                scores.square()
        return slopes

    def _loss(self, number: int, logits: Tensor, labels: str, generator: torch.Generator) -> Tensor:
        start = max(self.sequences[number].response_start, 1)
        logits = logits[0, start - 1 : -1].float()
        targets = self.ids[number][0, start:].to(logits.device)
        if labels == "sampled":
            drawn = torch.multinomial(logits.detach().softmax(dim=-1).cpu(), 1, generator=generator)
            targets = drawn[:, 0].to(logits.device)
        return nn.functional.cross_entropy(logits, targets, reduction="sum") / self.divisor

    def _layer(self, index: int, inputs: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
        model, below = self.model, []
        with model.loaded(index), torch.enable_grad():
            prefix = f"{model.prefix}{index}."
            parameters = {prefix + name: value for name, value in model.blocks[index].named_parameters()}
            with _Scores(parameters, self.store) as scores:
                for group in self.groups:
                    for number in group:
                        x = inputs[number].to(model.device).requires_grad_()
                        model.run(index, x, self.masks[number]).backward(slopes[number].to(model.device))
                        below.append(_gradient(x).cpu())
                    scores.square()
        return below

    def _embeddings(self, slopes: list[Tensor]) -> None:
        with torch.enable_grad(), _Scores(self.model.outer_parameters(), self.store) as scores:
            for place, group in enumerate(self.groups):
                for number in group:
                    embedded = self.model.embed(self.ids[number], self.masks[number])
                    embedded.backward(slopes[number].to(self.model.device))
                if self.tied is not None:
                    _gradient(self.tied)[self._used(group)] += self.head_rows[place].to(self.tied.device)
                scores.square()

    def _used(self, group: list[int]) -> Tensor:
        """The tokens that the sequences of a group hold."""
        return torch.cat([self.ids[number][0] for number in group]).unique()


class _Scores:
    """Squares the gradients of some parameters, when told to; hands the sums to the store at the end."""

    def __init__(self, parameters: dict[str, nn.Parameter], store: FisherStore) -> None:
        self.parameters = {name: value for name, value in parameters.items() if value.is_floating_point()}
        self.store = store
        self.sums: dict[str, Tensor] = {}

    def __enter__(self) -> "_Scores":
        for value in self.parameters.values():
            value.requires_grad_(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, value in self.parameters.items():
            value.requires_grad_(False).grad = None
            if kind is None and name in self.sums:
                self.store.add(name, self.sums[name])

    def square(self) -> None:
        for name, value in self.parameters.items():
            if value.grad is None:
                continue
            gradient = value.grad.float()
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(gradient)
            self.sums[name].addcmul_(gradient, gradient)
            value.grad = None


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise RuntimeError("no gradient reached a tensor that the loss depends on")
    return tensor.grad


def _chunks(sequences: "Sequence[TokenSequence]", tokens: int) -> "Iterator[list[TokenSequence]]":
    chunk: list[TokenSequence] = []
    size = 0
    for sequence in sequences:
        if chunk and size + len(sequence) > tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(sequence)
        size += len(sequence)
    if chunk:
        yield chunk
