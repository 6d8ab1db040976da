"""Conversations as token ids: what calibration, Fisher, RegMean and the routing measures read.

A record is a mapping with `prompt`, `prompt` and `response`, or `messages`; it always goes through the model's chat
template, so that a router is calibrated on the token stream it will see in use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from harc.checkpoint import CheckpointError, read_json

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")  # any of them makes a tokenizer


@dataclass(frozen=True)
class TokenSequence:
    """One conversation.

    ids: token ids, shape (tokens,).
    response_start: index of the first token of the last assistant turn; `len(ids)` when there is none.
    """

    ids: Int64[Tensor, "tokens"]
    response_start: int

    def __len__(self) -> int:
        return len(self.ids)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id.

    Raises:
        CheckpointError: a folder without tokenizer files, or with damaged ones.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any(file for name in _VOCABULARIES for file in folder.glob(name)):
            raise CheckpointError(
                f"{source}: no tokenizer ({', '.join(_VOCABULARIES)}); copy tokenizer.json, tokenizer_config.json and "
                "the chat template from one of its source models"
            )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                read_json(folder / name)
    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions on a file of another kind
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{source}: its tokenizer files cannot be used: {said}; fetch them again") from error


def encode(
    tokenizer: PreTrainedTokenizerBase, records: Iterable[Mapping[str, Any]], max_length: int
) -> list[TokenSequence]:
    """Renders each record with the chat template and tokenizes it, cut on the right at `max_length` tokens.

    Raises:
        ValueError: a record without `prompt` or `messages` (its position is named), or a tokenizer without a template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; calibration text needs one")
    return [_encode_one(tokenizer, record, position, max_length) for position, record in enumerate(records)]


def _encode_one(
    tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any], position: int, max_length: int
) -> TokenSequence:
    messages = _messages(record, position)
    answered = messages[-1]["role"] == "assistant"
    turns = messages[:-1] if answered else messages
    prompt = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    text = str(tokenizer.apply_chat_template(messages, tokenize=False)) if answered else prompt
    if not text.startswith(prompt):
        raise ValueError(f"record {position}: the chat template renders the prompt differently before a response")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    if answered:
        ids = ids + tokenizer(text[len(prompt) :], add_special_tokens=False)["input_ids"]
    return TokenSequence(torch.tensor(ids[:max_length], dtype=torch.int64), min(start, len(ids), max_length))


def _messages(record: Mapping[str, Any], position: int) -> list[dict[str, str]]:
    if record.get("messages"):
        return list(record["messages"])
    if not isinstance(record.get("prompt"), str):
        raise ValueError(f"record {position}: expected `prompt` or `messages`, found {sorted(record)}")
    messages = [{"role": "user", "content": record["prompt"]}]
    if record.get("response"):
        messages.append({"role": "assistant", "content": record["response"]})
    return messages


def padded_batches(
    sequences: Sequence[TokenSequence], tokens_per_batch: int
) -> Iterable[tuple[list[int], Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]]:
    """Yields (indices, input_ids, attention_mask), right-padded, sequences of like length together.

    A batch holds at most `tokens_per_batch` tokens, padding included (but at least one sequence). The mask is 1 on real
    tokens; whoever reads hidden states must select by it.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(sequences[order[end]]) <= tokens_per_batch:
            end += 1
        chosen = order[start:end]
        length = len(sequences[chosen[-1]])
        ids = torch.zeros(len(chosen), length, dtype=torch.int64)
        mask = torch.zeros(len(chosen), length, dtype=torch.int64)
        for row, index in enumerate(chosen):
            ids[row, : len(sequences[index])] = sequences[index].ids
            mask[row, : len(sequences[index])] = 1
        yield chosen, ids, mask
        start = end
