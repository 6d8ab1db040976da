"""A source model in lockstep with the merged one: the same tokens, one layer at a time, hidden states of its own.

The order of tokens is that of the merged model's `HiddenStates` on the same sequences, so rows of the two meet.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.models.hidden_states import HiddenStates
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.tokens import TokenSequence


class SourceStates:
    """One source model's hidden states on its domain's text.

    Attributes: stream, the source's; state, its HiddenStates.
    """

    def __init__(
        self, merged: LayerStream, source: Checkpoint, sequences: Sequence[TokenSequence], batch: int, store: Store
    ) -> None:
        """Opens the source in the dtype and on the device of the merged model. batch: tokens forwarded at once.

        Raises:
            ValueError: routers in other layers than the merged model's.
        """
        self.stream = LayerStream(source, dtype=merged.dtype, device=merged.device)
        if list(self.stream.routers) != list(merged.routers):
            raise ValueError(f"{source.source}: routers in other layers than {merged.checkpoint.source}")
        self.stream.forms = merged.forms  # the same layers: tried once
        self.state = HiddenStates(self.stream, sequences, batch, store)

    def embed(self) -> None:
        """Fills in the token embeddings."""
        with self.stream.loaded(None):
            self.state.embed()

    def forward(self, layer: int) -> None:
        """Takes all tokens through a layer."""
        with self.stream.loaded(layer):
            self.state.forward(layer)

    def router_logits(self, layer: int) -> Float[Tensor, "tokens experts"]:
        """Takes all tokens through a layer; what its router makes of them, valid until the next call (float32)."""
        split = self.state.splits(layer)
        with self.stream.loaded(layer):
            return self.state.router_logits(layer, split)
