"""How well a model predicts text, and how far its predictions are from a source's: the evidence beside accuracy.

Both models' last hidden states of the same tokens go through final norm and head a block of tokens at a time: the
vocabulary × tokens matrix of a whole text is too large to hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from harc.models.hidden_states import HiddenStates
from harc.models.streaming import LayerStream
from harc.tokens import TokenSequence

_LOGITS_BYTES = 1 << 25  # of one model's logits of a block of tokens; about five such matrices are alive at once


@dataclass(frozen=True)
class Likelihood:
    """Per-sequence means over predicted tokens, in nats a token; 0 where a sequence has none.

    tokens: predicted tokens of each sequence.
    loss: −log p(token) under the model.
    source_loss: the same under the source.
    output_kl: KL(source ‖ model) of the next-token distributions.
    greedy, source_greedy: how many predicted tokens, from a sequence's first on, are the most probable ones: where it
        is all of them, greedy decoding writes the response.
    """

    tokens: Int64[Tensor, "sequences"]
    loss: Float[Tensor, "sequences"]
    source_loss: Float[Tensor, "sequences"]
    output_kl: Float[Tensor, "sequences"]
    greedy: Int64[Tensor, "sequences"]
    source_greedy: Int64[Tensor, "sequences"]

    def mean(self, values: Float[Tensor, "sequences"]) -> float:
        """The mean over all predicted tokens of one of the three."""
        return float((values * self.tokens).sum() / self.tokens.sum())


def predicted(sequence: TokenSequence) -> range:
    """Positions of the tokens whose prediction counts: the response's, or all but the first where there is none."""
    length = len(sequence)
    start = sequence.response_start if sequence.response_start < length else 1
    return range(max(1, start), length)


def likelihood(model: HiddenStates, source: HiddenStates, sequences: Sequence[TokenSequence]) -> Likelihood:
    """Compares two models' predictions from their last hidden states of the same sequences.

    Raises:
        CheckpointError: a checkpoint without head or final norm.
    """
    rows, targets, owners = _predictions(sequences)
    counts = torch.bincount(owners, minlength=len(sequences))
    sums = torch.zeros(3, len(sequences), dtype=torch.float64)
    vocabulary = model.stream.model.config.get_text_config().vocab_size
    right = torch.zeros(2, len(rows), dtype=torch.bool)
    size = max(1, _LOGITS_BYTES // (4 * vocabulary))
    with torch.no_grad(), model.stream.loaded_head(), source.stream.loaded_head():
        for start in range(0, len(rows), size):
            block = slice(start, start + size)
            log_q, log_p = (_log_probabilities(state.stream, state.values[rows[block]]) for state in (model, source))
            target = targets[block].to(log_q.device)
            values = [
                F.nll_loss(log_q, target, reduction="none"),
                F.nll_loss(log_p, target, reduction="none"),
                F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).clamp(min=0),
            ]
            sums.index_add_(1, owners[block], torch.stack(values).double().cpu())
            right[:, block] = torch.stack([log_q.argmax(-1) == target, log_p.argmax(-1) == target]).cpu()
    leading = (_leading(each, counts) for each in right)
    return Likelihood(counts, *(sums / counts.clamp(min=1)), *leading)


def _leading(right: Bool[Tensor, "tokens"], counts: Int64[Tensor, "sequences"]) -> Int64[Tensor, "sequences"]:
    """How many of each sequence's tokens are right before the first that is not."""
    return torch.stack([part.long().cumprod(0).sum() for part in right.split(counts.tolist())])


def _predictions(sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every predicted token: the row of the hidden state it is predicted from, its id, and its sequence."""
    rows, targets, owners, begin = [], [], [], 0
    for index, sequence in enumerate(sequences):
        positions = torch.arange(predicted(sequence).start, len(sequence))
        rows.append(begin + positions - 1)
        targets.append(sequence.ids[positions])
        owners.append(torch.full_like(positions, index))
        begin += len(sequence)
    return torch.cat(rows), torch.cat(targets), torch.cat(owners)


def _log_probabilities(
    stream: LayerStream, hidden: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens vocabulary"]:
    hidden = hidden.to(stream.device)[:, None]  # a token a sequence: norm and head look at no other
    mask = torch.ones(len(hidden), 1, dtype=torch.int64, device=stream.device)
    logits = stream.logits(hidden, mask)[:, 0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
