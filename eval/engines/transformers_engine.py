"""Plain transformers generation, batched: slow, but runs wherever the model does."""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from eval.config import EngineConfig
from eval.engines.base import EngineError, fit_context, model_context, request_seed

log = logging.getLogger(__name__)


class TransformersEngine:
    """See `eval.engines.base.Engine`. model: what generates; whoever changes how it is run does so from outside."""

    def __init__(self, config: EngineConfig, model: Path | str) -> None:
        on_gpu = torch.cuda.is_available()
        dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        transformers_logging.disable_progress_bar()
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(model), padding_side="left", trust_remote_code=False
            )
            self.model = AutoModelForCausalLM.from_pretrained(
                str(model),
                dtype=getattr(torch, dtype),
                device_map="auto" if on_gpu else None,
                use_safetensors=True,
                trust_remote_code=False,
            ).eval()
        except (OSError, ValueError) as error:
            raise EngineError(f"{model}: transformers could not open it: {error}") from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.context = model_context(model, config.max_model_len) or 2**20
        self._batch_size = config.batch_size

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
        """See `eval.engines.base.Engine.generate`."""
        lengths = [len(ids) for ids in self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
        room = fit_context(lengths, self.context, max_tokens)
        drawn = n if temperature > 0 else 1
        # Rows of like length share a batch; every row has its own random stream.
        rows = sorted(
            ((index, copy) for index in range(len(prompts)) for copy in range(drawn)), key=lambda row: lengths[row[0]]
        )
        texts: dict[tuple[int, int], str] = {}
        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        for batch in tqdm(batches, desc="generating", disable=len(batches) < 4, leave=False):
            seeds = [request_seed(seed, prompts[index]) + copy for index, copy in batch]
            tokens = min(room[index] for index, _ in batch)
            for row, text in zip(
                batch, self._batch([prompts[i] for i, _ in batch], seeds, temperature, tokens, stop), strict=True
            ):
                texts[row] = text
        return [[texts[index, copy % drawn] for copy in range(n)] for index in range(len(prompts))]

    @torch.inference_mode()
    def _batch(
        self, prompts: list[str], seeds: list[int], temperature: float, max_tokens: int, stop: Sequence[str]
    ) -> list[str]:
        inputs = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        processors = LogitsProcessorList([SeededGumbel(seeds, temperature)] if temperature > 0 else [])
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=max_tokens,
            logits_processor=processors,
            stop_strings=list(stop) or None,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        return [_cut(text, stop) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def close(self) -> None:
        """See `eval.engines.base.Engine.close`."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class SeededGumbel(LogitsProcessor):
    """Sampling as an argmax: softmax(z / T) is drawn by argmax(z / T + Gumbel noise), the noise of a row its own.

    `generate`'s sampling has one random stream for a whole batch, so that a row's sample would depend on its
    neighbours.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=stream) for stream in self._streams])
        return scores.float() / self._temperature - noise.log().to(scores.device)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    found = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(found)] if found else text
