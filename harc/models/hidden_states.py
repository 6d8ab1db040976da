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

from harc.models.routers import NoRouterError
from harc.models.store import Store, Transfer
from harc.models.streaming import LayerStream
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
        self._logits: Tensor | None = None
        self.values = store.empty(self.tokens, hidden_size(stream), stream.dtype)

    def embed(self) -> None:
        """Fills in the token embeddings; the stream's embeddings must be loaded.

        Raises:
            NoRouterError: an architecture whose layers hand on something else than one vector a token.
        """
        with torch.no_grad():
            for rows, ids, mask in self.batches:
                hidden = self.stream.embed(ids.to(self.stream.device), mask.to(self.stream.device))
                if hidden.shape != (*mask.shape, self.values.shape[1]):
                    raise NoRouterError(
                        f"{type(self.stream.model).__name__}: its layers hand on {tuple(hidden.shape[2:])} values per "
                        f"token, not {self.values.shape[1]} (hyper-connections?); such layers cannot be run one by one"
                    )
                self.values[rows] = hidden[mask.bool()].to(self.values.device)

    def forward(self, layer: int) -> None:
        """Takes all tokens through one loaded layer."""
        with torch.no_grad():
            for (rows, _, mask), padded, write in self._transfer.blocks(self.batches, self.padded):
                hidden = self.stream.run(layer, padded, mask.to(padded.device))
                write(partial(self.values.index_copy_, 0, rows), hidden[mask.bool()])

    def router_logits(self, layer: int, split: bool) -> Float[Tensor, "tokens experts"]:
        """Takes all tokens through one loaded layer as `forward` does; its router's logits on the way, in float32.

        They are valid until the next call. split: what `splits` said; if so tokens go through the experts in the small
        blocks that `complete` takes.

        Raises:
            ValueError: a router input that is not finite.
        """
        router, moe = self.stream.routers[layer], self.stream.moe(layer)
        weight = self.stream.loaded_router(layer).float()
        if self._logits is None:
            self._logits = self._store.empty(self.tokens, len(weight), torch.float32)
        finite = torch.ones((), dtype=torch.bool, device=self.stream.device)
        with torch.no_grad(), _inputs_of(router.module) as seen:
            for (rows, _, mask), padded, write in self._transfer.blocks(self.batches, self.padded):
                seen.clear()
                with returning_zeros(moe, seen, self.stream.form(layer) or 1) if split else contextlib.nullcontext():
                    hidden = self.stream.run(layer, padded, mask.to(padded.device))
                real = mask.bool()
                x, hidden = seen[0].reshape(*hidden.shape[:2], -1)[real], hidden[real]
                finite &= torch.isfinite(x).all()
                z = self.stream.router_features(layer, x.float()) @ weight.T
                write(partial(self._logits.index_copy_, 0, rows), z)
                if split:
                    for part, out in zip(*(t.split(self._moe_tokens(layer)) for t in (x, hidden)), strict=True):
                        out += _through(moe, part)
                write(partial(self.values.index_copy_, 0, rows), hidden)
        self._check_finite(layer, finite)
        return self._logits

    def splits(self, layer: int) -> bool:
        """Whether a layer's output is h' + moe(x), tried on a few tokens; a layer of a new kind is loaded for it."""
        block, moe = self.stream.blocks[layer], self.stream.moe(layer)
        kind = (type(block), type(moe))
        if kind not in self.stream.forms and self.batches and block is not moe:
            with torch.no_grad(), self.stream.loaded(layer):
                self.stream.forms[kind] = self._try(layer)
        return self.stream.form(layer) is not None

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
        kept, finite = self._kept, torch.ones((), dtype=torch.bool, device=self.stream.device)
        router = self.stream.routers[layer].module
        with (
            torch.no_grad(),
            _inputs_of(router) as seen,
            returning_zeros(moe, seen, self.stream.form(layer) or 1) if split else contextlib.nullcontext(),
        ):
            for (rows, _, mask), padded, write in self._transfer.blocks(self.batches, self.padded):
                seen.clear()
                hidden = self.stream.run(layer, padded, mask.to(padded.device))
                real = mask.bool()
                x = seen[0].reshape(*hidden.shape[:2], -1)[real]
                finite &= torch.isfinite(x).all()
                write(partial(kept.index_copy_, 0, rows), x)
                if split:
                    write(partial(self.values.index_copy_, 0, rows), hidden[real])
        self._check_finite(layer, finite)
        return kept

    def complete(self, layer: int, x: Float[Tensor, "tokens hidden"], split: bool) -> None:
        """Finishes a layer after `router_inputs`, with the router that is in it now; its MoE block must be loaded."""
        if not split:
            return self.forward(layer)
        moe, size = self.stream.moe(layer), self._moe_tokens(layer)
        chunks = [slice(start, min(start + size, self.tokens)) for start in range(0, self.tokens, size)]
        with torch.no_grad():
            for chunk, part, write in self._transfer.blocks(chunks, lambda chunk: x[chunk]):
                write(self.values[chunk].add_, _through(moe, part))
        return None

    def _check_finite(self, layer: int, finite: Tensor) -> None:
        if not finite:
            raise ValueError(
                f"layer {layer} of {self.stream.checkpoint.source}: NaN or Inf in the inputs of its router; "
                f"are the layer's weights finite, and can {self.stream.dtype} hold what it computes?"
            )

    def _moe_tokens(self, layer: int) -> int:
        """How many tokens go through an MoE block at once: what `_MOE_BYTES` allow on a CPU, else a batch's."""
        if self.stream.device.type != "cpu":
            return self._chunk
        row = 4 * self.stream.routers[layer].top_k * self.values.shape[1] * self.values.element_size()
        return max(64, min(self._chunk, _MOE_BYTES // row))

    def padded(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The hidden states of a batch, zeros where it is padded: (batch, length, hidden)."""
        rows, _, mask = batch
        padded = torch.zeros(*mask.shape, self.values.shape[1], dtype=self.values.dtype)
        padded[mask.bool()] = self.values[rows]
        return padded

    def _try(self, layer: int) -> int | None:
        """Runs a loaded layer on a few tokens in both ways; how many things its block returns, None if they differ."""
        moe, router = self.stream.moe(layer), self.stream.routers[layer].module
        rows, ids, mask = self.batches[0]
        few = max(1, _TRIED // mask.shape[1])
        mask = mask[:few]
        padded = self.padded((rows[: int(mask.sum())], ids[:few], mask)).to(self.stream.device)
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
            return None
        real, x = mask.bool(), inputs[0][0]
        if x.shape != plain.shape or not torch.equal(x.reshape(-1), routed[0].reshape(-1)):
            return None
        returned = moe(x[real][None])
        form = len(returned) if isinstance(returned, tuple) else 1
        output = _first(returned)
        if not isinstance(output, Tensor) or output.numel() != x[real].numel():
            return None
        with returning_zeros(moe, [], form):
            residual = self.stream.run(layer, padded, mask)[real]
        plain = plain[real]
        difference = (residual + output.reshape(residual.shape) - plain).float().norm() / plain.float().norm()
        return form if difference < (1e-5 if plain.dtype == torch.float32 else 2e-2) else None


def hidden_size(stream: LayerStream) -> int:
    """The width of the hidden states."""
    return stream.model.get_input_embeddings().weight.shape[1]


@contextlib.contextmanager
def _inputs_of(router: nn.Module) -> Iterator[list[Tensor]]:
    """Lists the inputs of a router's calls."""
    seen: list[Tensor] = []
    tap = router.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        tap.remove()


def _through(moe: nn.Module, x: Tensor) -> Tensor:
    """What an MoE block makes of tokens, (tokens, hidden)."""
    return _first(moe(x[None])).reshape(x.shape)


def _first(returned: Any) -> Any:
    """A block's output: what it returns, or the first of several things (router logits may follow)."""
    return returned[0] if isinstance(returned, tuple) else returned


@contextlib.contextmanager
def returning_zeros(block: nn.Module, seen: list[Tensor], count: int = 1) -> Iterator[None]:
    """Lets an MoE block return zeros, followed by None where it returns several things; its input goes to `seen`."""

    def zeros(x: Tensor) -> Any:
        seen.append(x)
        return torch.zeros_like(x) if count == 1 else (torch.zeros_like(x), *[None] * (count - 1))

    block.forward = zeros  # type: ignore[method-assign]
    try:
        yield
    finally:
        del block.forward
