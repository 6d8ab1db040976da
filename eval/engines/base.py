"""What every engine offers, and what they share: seeds a request, prompts that fit the context."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from transformers import AutoConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine cannot be opened, or cannot run what it was given; the message says what to change."""


class Engine(Protocol):
    """A loaded model that turns prompts into samples."""

    tokenizer: PreTrainedTokenizerBase

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[list[str]]:
        """Draws `n` samples a prompt.

        A prompt is a final string, chat template already applied. Each request's random stream comes from `seed` and
        the prompt's text alone, so that samples do not depend on what else is in the call. With temperature 0 the one
        greedy response is returned n times. A stop string is not part of the text returned.
        """

    def close(self) -> None:
        """Frees the model's memory; the engine cannot be used afterwards."""


def request_seed(seed: int, prompt: str) -> int:
    """A 31-bit seed from the run's seed and the prompt, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def model_context(model: Path | str, wanted: int | None) -> int | None:
    """The context to run with: what was asked for, but no more than the model's own; None if neither is known."""
    own = getattr(
        AutoConfig.from_pretrained(str(model), trust_remote_code=False).get_text_config(),
        "max_position_embeddings",
        None,
    )
    if wanted and own and wanted > own:
        log.warning("%s: max_model_len=%d is more than the model's own context: %d is used", model, wanted, own)
        return int(own)
    return wanted or own


def fit_context(lengths: Sequence[int], context: int, max_tokens: int) -> list[int]:
    """New tokens each prompt may have: `max_tokens`, or what the context leaves.

    Raises:
        EngineError: a prompt leaves no room at all; its position, its length and the context are named.
    """
    for index, length in enumerate(lengths):
        if length >= context:
            raise EngineError(
                f"prompt {index} has {length} tokens and the model's context holds {context}: no room for a "
                "response. Choose shorter prompts, a model with a longer context, or a larger max_model_len."
            )
    room = [min(max_tokens, context - length) for length in lengths]
    cut = sum(tokens < max_tokens for tokens in room)
    if cut:
        log.warning(
            "%d of %d responses may have fewer than %d tokens: the context holds %d",
            cut,
            len(room),
            max_tokens,
            context,
        )
    return room
