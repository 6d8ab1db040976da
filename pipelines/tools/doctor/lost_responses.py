"""Responses that a source writes by greedy decoding and its merge does not: where routing and text left.

No text is generated: a model writes a response greedily if and only if each of its tokens is the most probable one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from harc.attribution import Attribution
from harc.likelihood import predicted
from harc.tokens import TokenSequence

_LONGEST = 60


@dataclass(frozen=True)
class Lost:
    """One response that the merge lost.

    prompt: its beginning. left_at, token: which token of the response the merge does not write, and its text.
    routed_at, routed_token, layer: the first token of the conversation, and the first layer there, at which the merged
    model chose other experts than the source; None where it never did before that token. flipped: share of decisions
    that differ up to there. routed: whether the merge writes the response once it is routed as the source.
    """

    domain: str
    prompt: str
    left_at: int
    token: str
    routed_at: int | None
    routed_token: str
    layer: int | None
    flipped: float
    routed: bool


@dataclass(frozen=True)
class Kept:
    """How many responses of a domain greedy decoding writes.

    responses: in all; by_source: that the source writes; by_merged: of these, those that the merge writes too;
    by_routed: those that it writes when it is routed as the source.
    """

    responses: int
    by_source: int
    by_merged: int
    by_routed: int


def kept_of(part: Attribution) -> Kept:
    """How many responses survived merging."""
    own = part.greedy_source == part.tokens
    merged, routed = (own & (each == part.tokens) for each in (part.greedy_merged, part.greedy_routed))
    return Kept(len(part.tokens), int(own.sum()), int(merged.sum()), int(routed.sum()))


def lost_of(
    domain: str, part: Attribution, sequences: Sequence[TokenSequence], tokenizer: PreTrainedTokenizerBase
) -> list[Lost]:
    """The lost responses of a domain, in the order of the text."""
    found = []
    for index, sequence in enumerate(sequences):
        count = int(part.tokens[index])
        if int(part.greedy_source[index]) < count or int(part.greedy_merged[index]) == count:
            continue
        first = predicted(sequence).start
        left = first + int(part.greedy_merged[index])
        begin = part.starts[index]
        before = part.mismatch[:, begin : begin + left]  # what the prediction of that token was made of
        per_token = before.any(0).nonzero().flatten().tolist()
        at = per_token[0] if per_token else None
        layer = None if at is None else part.layers[int(before[:, at].nonzero()[0])]
        prompt = " ".join(str(tokenizer.decode(sequence.ids[:first], skip_special_tokens=True)).split())
        found.append(
            Lost(
                domain,
                prompt if len(prompt) <= _LONGEST else f"{prompt[:_LONGEST]}…",
                left - first,
                str(tokenizer.decode(sequence.ids[left : left + 1])),
                at,
                "" if at is None else str(tokenizer.decode(sequence.ids[at : at + 1])),
                layer,
                float(before.double().mean()),
                int(part.greedy_routed[index]) == count,
            )
        )
    return found
