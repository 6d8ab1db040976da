"""Which kind of token each token of some text is: where in a text routing flips."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harc.tokens import TokenSequence

KINDS = ("prompt", "response", "words", "digits", "symbols", "spaces", "special")


def kinds_of(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """For each of KINDS, whether a token is of it: (tokens,) over all sequences.

    Each token is of the prompt or the response, and of one of the other kinds.
    """
    ids = torch.cat([sequence.ids for sequence in sequences]).tolist()
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    known = {index: "special" if index in special else kind_of(str(tokenizer.decode([index]))) for index in set(ids)}
    response = torch.cat([torch.arange(len(sequence)) >= sequence.response_start for sequence in sequences])
    found = {"prompt": ~response, "response": response}
    for kind in KINDS[2:]:
        found[kind] = torch.tensor([known[index] == kind for index in ids])
    return found


def kind_of(text: str) -> str:
    """The kind of a token by its text."""
    inside = text.strip()
    if not inside:
        return "spaces"
    if any(character.isdigit() for character in inside):
        return "digits"
    return "words" if any(character.isalpha() for character in inside) else "symbols"
