"""Training examples as token ids and labels, through the chat template.

Prompt and response are tokenized apart, as in `harc.tokens`, so that a model is trained on the token stream it will see
when it generates. A label of -100 carries no loss.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

IGNORED = -100
_CHUNK = 2000

log = logging.getLogger(__name__)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[dict[str, Any]],
    *,
    max_length: int,
    responses_only: bool = True,
) -> Dataset:
    """Columns `input_ids` and `labels` (int32 lists), cut on the right at `max_length`.

    With `responses_only`, every assistant turn carries loss, its end-of-turn token included, and nothing else does;
    records whose prompt alone fills `max_length` are left out.

    Raises:
        ValueError: a record without a response, a tokenizer without a chat template, or no example left.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; set `chat_template` in the training config"
        )
    tables, kept, partly = [], 0, 0
    pending = iter(records)
    while chunk := list(islice(pending, _CHUNK)):
        segments = [_segments(tokenizer, record) for record in chunk]
        partly += sum(complete is False for _, complete in segments)
        encoded = iter(
            tokenizer([text for parts, _ in segments for text, _ in parts], add_special_tokens=False)["input_ids"]
        )
        inputs, labels = [], []
        for parts, _ in segments:
            ids: list[int] = []
            targets: list[int] = []
            for _, learned in parts:
                piece = next(encoded)
                ids += piece
                targets += piece if learned or not responses_only else [IGNORED] * len(piece)
            if max(targets[1:max_length], default=IGNORED) != IGNORED:
                inputs.append(ids[:max_length])
                labels.append(targets[:max_length])
        kept += len(inputs)
        kind = pa.list_(pa.int32())
        tables.append(pa.table({"input_ids": pa.array(inputs, kind), "labels": pa.array(labels, kind)}))
    if not kept:
        raise ValueError(f"none of {len(records)} training examples has a response within {max_length} tokens")
    if kept < len(records):
        log.warning(
            "%d of %d examples have no response within %d tokens", len(records) - kept, len(records), max_length
        )
    if partly and responses_only:
        log.warning("%d conversations learn from their last turn only: the template rewrites earlier ones", partly)
    return Dataset(pa.concat_tables(tables))


def _segments(tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]) -> tuple[list[tuple[str, bool]], bool]:
    """The conversation's text in pieces, each with whether it is an assistant turn; and whether all were found."""
    messages = _messages(record)
    full = _render(tokenizer, messages)
    pieces: list[tuple[str, bool]] = []
    cursor, complete = 0, True
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], unanswered=True)
        last = index == len(messages) - 1
        after = full if last else _render(tokenizer, messages[: index + 1])
        if not (after.startswith(before) and full.startswith(after)):
            if last:
                raise ValueError(
                    f"record {record.get('id')}: the chat template renders a prompt differently unanswered"
                )
            complete = False
            continue
        pieces += [(full[cursor : len(before)], False), (full[len(before) : len(after)], True)]
        cursor = len(after)
    return [piece for piece in pieces if piece[0]], complete


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], unanswered: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=unanswered, tokenize=False))


def _messages(record: dict[str, Any]) -> list[dict[str, str]]:
    if record.get("messages"):
        return record["messages"]
    if not record.get("response"):
        raise ValueError(f"record {record.get('id')}: training needs a response")
    return [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["response"]}]


def count_tokens(dataset: Dataset) -> tuple[int, int]:
    """Tokens of a tokenized dataset, and how many of them carry loss."""
    columns: Iterable[Any] = (dataset.data.column(name) for name in ("input_ids", "labels"))
    inputs, labels = (column.combine_chunks().flatten() for column in columns)
    return len(inputs), len(labels) - pa.compute.sum(pa.compute.equal(labels, IGNORED)).as_py()
