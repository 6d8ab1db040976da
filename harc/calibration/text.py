"""One domain's calibration text on its way through the merged model, and through its source model beside it."""

import zlib
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from harc.checkpoint import Checkpoint
from harc.models.hidden_states import HiddenStates
from harc.models.lockstep import SourceStates
from harc.models.store import Store
from harc.models.streaming import LayerStream
from harc.parallel import share
from harc.tokens import TokenSequence


class DomainText:
    """One domain's sequences in this process, those held out (one in five, by their content) last.

    Attributes: state, the merged model's hidden states; source, the source model beside it, None where routing is
    fitted to the source's router on the merged model's inputs.
    """

    def __init__(
        self,
        stream: LayerStream,
        source: Checkpoint | None,
        sequences: Sequence[TokenSequence],
        hold_out: bool,
        tokens_per_batch: int,
        store: Store,
    ) -> None:
        """Reserves room for the hidden states. source: of the domain, to be run in lockstep."""
        fitted, held = divide(sequences) if hold_out else (list(sequences), [])
        fitted, held = share(fitted), share(held)
        self._fitted = sum(len(sequence) for sequence in fitted)
        self.state = HiddenStates(stream, fitted + held, tokens_per_batch, store)
        self.source = None if source is None else SourceStates(stream, source, fitted + held, tokens_per_batch, store)

    @property
    def values(self) -> list[Float[Tensor, "tokens hidden"]]:
        """The hidden states of both models."""
        return [self.state.values, *([self.source.state.values] if self.source else [])]

    def split(self, per_token: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the tokens to fit to, and of those held out."""
        return per_token[: self._fitted], per_token[self._fitted :]


def divide(sequences: Sequence[TokenSequence]) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """Divides sequences into those to fit to and those held out, about one in five, whatever their order.

    Raises:
        ValueError: fewer than two different sequences.
    """
    ranked = sorted(sequences, key=lambda sequence: (zlib.crc32(sequence.ids.numpy().tobytes()), sequence.ids.tolist()))
    count = max(1, len(ranked) // 5)
    if len(ranked) < 2:
        raise ValueError(
            "alpha=auto and target=source_inputs hold sequences out to judge by: at least two per domain are needed"
        )
    return ranked[count:], ranked[:count]
