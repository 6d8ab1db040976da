"""The hidden states of all calibration tokens, taken through a model one layer at a time, each layer once.

A decoder layer is h' = h + attention(norm(h)), then h' + moe(norm(h')): with the MoE block returning zeros the layer's
output is h' and the block's input x is what its router sees. Both are kept, the router is changed, and h' + moe(x)
completes the layer: the first half needs the attention's weights only, the second the experts' only, and what comes in
between (the solve) neither. That a layer has this form is checked against the plain layer, once for each kind of layer;
one of another form is forwarded twice.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harc.store import Store, Transfer
from harc.streaming import LayerStream
from harc.tokens import TokenSequence, padded_batches

_TRIED = 256  # tokens a layer's form is tried on, about
_MOE_BYTES = 1 << 24  # of a block of tokens once it is copied to each of its experts, on a CPU


class HiddenStates:
    """The hidden states of some text at one depth of a model: (tokens, hidden), padding left out.

    Attributes: tokens; batches: (token positions in `values`, input ids, mask) of each padded batch; values.
    """

    def __init__(self, stream: LayerStream, sequences: Sequence[TokenSequence], tokens_per_batch: int, store: Store):
        self.stream = stream
        self.tokens = sum(len(sequence) for sequence in sequences)
        self.batches = []
        starts = torch.tensor([0] + [len(sequence) for sequence in sequences]).cumsum(0)
        for chosen, ids, mask in padded_batches(sequences, tokens_per_batch):
            rows = [torch.arange(int(starts[i]), int(starts[i + 1])) for i in chosen]
            self.batches.append((torch.cat(rows), ids, mask))
        self._chunk = tokens_per_batch
        self._store = store
        self._transfer = Transfer(stream.device)
        self._kept: Tensor | None = None
        self.values = store.empty(self.tokens, hidden_size(stream), stream.dtype)

    def embed(self) -> None:
        """Fills in the token embeddings; the stream's embeddings must be loaded."""
        with torch.no_grad():
            for rows, ids, mask in self.batches:
                hidden = self.stream.embed(ids.to(self.stream.device), mask.to(self.stream.device))
                self.values[rows] = hidden[mask.bool()].to(self.values.device)

    def forward(self, layer: int) -> None:
        """Takes all tokens through one loaded layer."""
        with torch.no_grad():
            for (rows, _, mask), padded, write in self._transfer.blocks(self.batches, self._padded):
                hidden = self.stream.run(layer, padded, mask.to(padded.device))
                write(partial(self.values.index_copy_, 0, rows), hidden[mask.bool()])

    def splits(self, layer: int) -> bool:
        """Whether a layer's output is h' + moe(x), tried on a few tokens; a layer of a new kind is loaded for it."""
        block, moe = self.stream.blocks[layer], self.stream.moe(layer)
        kind = (type(block), type(moe))
        if kind not in self.stream.forms and self.batches and block is not moe:
            with torch.no_grad(), self.stream.loaded(layer):
                self.stream.forms[kind] = self._try(layer)
        return self.stream.forms.get(kind, False)

    def router_inputs(self, layer: int, split: bool) -> Float[Tensor, "tokens hidden"]:
        """The inputs of a layer's router, valid until the next call.

        split: what `splits` said. If so the layer's attention must be loaded, and its first half is done afterwards;
        else the whole layer must be, and the hidden states stay what they are. `complete` does the rest.

        Raises:
            ValueError: a router input that is not finite.
        """
        moe = self.stream.moe(layer)
        if self._kept is None:
            self._kept = self._store.empty(self.tokens, self.values.shape[1], self.values.dtype)
        kept, seen = self._kept, []  # type: ignore[var-annotated]
        tap = self.stream.routers[layer].module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        finite = torch.ones((), dtype=torch.bool, device=self.stream.device)
        try:
            with torch.no_grad(), _returning_zeros(moe, seen) if split else contextlib.nullcontext():
                for (rows, _, mask), padded, write in self._transfer.blocks(self.batches, self._padded):
                    seen.clear()
                    hidden = self.stream.run(layer, padded, mask.to(padded.device))
                    real = mask.bool()
                    x = seen[0].reshape(*hidden.shape[:2], -1)[real]
                    finite &= torch.isfinite(x).all()
                    write(partial(kept.index_copy_, 0, rows), x)
                    if split:
                        write(partial(self.values.index_copy_, 0, rows), hidden[real])
        finally:
            tap.remove()
        if not finite:
            raise ValueError(
                f"layer {layer} of {self.stream.checkpoint.source}: NaN or Inf in the inputs of its router; "
                f"are the layer's weights finite, and can {self.stream.dtype} hold what it computes?"
            )
        return kept

    def complete(self, layer: int, x: Float[Tensor, "tokens hidden"], split: bool) -> None:
        """Finishes a layer after `router_inputs`, with the router that is in it now; its MoE block must be loaded."""
        if not split:
            return self.forward(layer)
        moe, size = self.stream.moe(layer), self._moe_tokens(layer)
        chunks = [slice(start, min(start + size, self.tokens)) for start in range(0, self.tokens, size)]
        with torch.no_grad():
            for chunk, part, write in self._transfer.blocks(chunks, lambda chunk: x[chunk]):
                write(self.values[chunk].add_, moe(part[None])[0])
        return None

    def _moe_tokens(self, layer: int) -> int:
        """How many tokens go through an MoE block at once: what `_MOE_BYTES` allow on a CPU, else a batch's."""
        if self.stream.device.type != "cpu":
            return self._chunk
        row = 4 * self.stream.routers[layer].top_k * self.values.shape[1] * self.values.element_size()
        return max(64, min(self._chunk, _MOE_BYTES // row))

    def _padded(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        rows, _, mask = batch
        padded = torch.zeros(*mask.shape, self.values.shape[1], dtype=self.values.dtype)
        padded[mask.bool()] = self.values[rows]
        return padded

    def _try(self, layer: int) -> bool:
        """Runs a loaded layer on a few tokens in both ways."""
        moe, router = self.stream.moe(layer), self.stream.routers[layer].module
        rows, ids, mask = self.batches[0]
        few = max(1, _TRIED // mask.shape[1])
        mask = mask[:few]
        padded = self._padded((rows[: int(mask.sum())], ids[:few], mask)).to(self.stream.device)
        mask = mask.to(padded.device)
        inputs: list[Any] = []
        routed: list[Tensor] = []
        taps = [
            moe.register_forward_pre_hook(lambda _, args: inputs.append(args)),
            router.register_forward_pre_hook(lambda _, args: routed.append(args[0])),
        ]
        try:
            plain = self.stream.run(layer, padded, mask)
        finally:
            for tap in taps:
                tap.remove()
        if len(inputs) != 1 or len(inputs[0]) != 1 or len(routed) != 1:
            return False
        real, x = mask.bool(), inputs[0][0]
        if x.shape != plain.shape or not torch.equal(x.reshape(-1), routed[0].reshape(-1)):
            return False
        with _returning_zeros(moe, []):
            residual = self.stream.run(layer, padded, mask)[real]
        output = moe(x[real][None])
        if not isinstance(output, Tensor):
            return False
        difference = (residual + output[0] - plain[real]).float().norm() / plain[real].float().norm()
        return bool(difference < (1e-5 if plain.dtype == torch.float32 else 2e-2))


def hidden_size(stream: LayerStream) -> int:
    """The width of the hidden states."""
    return stream.model.get_input_embeddings().weight.shape[1]


@contextlib.contextmanager
def _returning_zeros(block: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Lets an MoE block return zeros; its input is appended to `seen`."""

    def zeros(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    block.forward = zeros  # type: ignore[method-assign]
    try:
        yield
    finally:
        del block.forward
