"""One engine as lm-evaluation-harness sees it: a model with one method that matters, generate_until."""

from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from eval.engines.base import Engine, EngineError


class EngineLM(LM):
    """Sends the `repeats` copies of a request, which lm-eval passes one after the other, as one request of n samples.

    Args:
        engine: the engine that generates.
        seed: the run's seed; see `Engine.generate`.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        super().__init__()
        self._engine = engine
        self._seed = seed

    @property
    def tokenizer_name(self) -> str:
        return str(self._engine.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders the turns; a last assistant turn is the start of the answer, left open exactly as it is given."""
        opening = ""
        if chat_history[-1]["role"] == "assistant":
            *chat_history, last = chat_history
            opening = last["content"]
        if self._engine.tokenizer.chat_template is None:
            raise EngineError(f"{self.tokenizer_name}: the tokenizer has no chat template; evaluation needs one")
        text = self._engine.tokenizer.apply_chat_template(chat_history, tokenize=False, add_generation_prompt=True)
        return str(text) + opening

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text a request, in the order given; one call of the engine a task, so that no task sees another."""
        texts: list[str] = []
        for _, group in groupby(requests, key=lambda request: request.task_name):
            copies = [list(same) for _, same in groupby(group, key=lambda request: (request.doc_id, request.idx))]
            arguments: dict[str, Any] = copies[0][0].args[1]
            samples = self._engine.generate(
                [same[0].args[0] for same in copies],
                n=len(copies[0]),
                temperature=arguments["temperature"],
                max_tokens=arguments["max_gen_toks"],
                stop=arguments["until"],
                seed=self._seed,
            )
            texts.extend(text for drawn in samples for text in drawn)
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks here generate; the engine has no log-likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError("tasks here generate; the engine has no log-likelihoods")
