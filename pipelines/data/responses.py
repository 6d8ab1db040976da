"""A source model's responses to calibration prompts, and whether they are right.

Correctness is decided by the judges of the benchmarks: the final answer for math, the tests for code.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedTokenizerBase

from eval.config import EngineConfig
from eval.engines import load_engine
from eval.engines.base import Engine
from eval.judges import judge
from eval.judges.registry import find_judge
from eval.tasks import task_config

Record = dict[str, Any]

log = logging.getLogger(__name__)

UNJUDGED = (None, "chat")


class Answer(NamedTuple):
    """A record with the model's response (None: prompt too long, or nothing said) and whether it is right."""

    record: Record
    response: str | None
    right: bool


@contextmanager
def answering(
    model: str, engine_config: EngineConfig, *, max_new_tokens: int, seed: int
) -> Iterator[Callable[[list[Record]], list[Answer]]]:
    """Loads a model; within, the function that is yielded gives each record's greedy `Answer`, however often called.

    Args:
        model: a folder or hub id.
        engine_config: what generates.
        max_new_tokens: tokens per response.
        seed: of the engine's requests.
    """
    engine = load_engine(engine_config, model)
    try:
        architecture = AutoConfig.from_pretrained(model, trust_remote_code=False)
        room = engine_config.max_model_len or architecture.max_position_embeddings
        yield lambda records: _answers(engine, records, room, max_new_tokens, seed, engine_config.allow_unsandboxed)
    finally:
        engine.close()


def _answers(
    engine: Engine, records: list[Record], room: int, max_new_tokens: int, seed: int, allow_unsandboxed: bool
) -> list[Answer]:
    by_task = [
        (task, list(group))
        for task, group in groupby(
            sorted(records, key=lambda record: str(record["task"])), key=lambda record: record["task"]
        )
    ]
    said: dict[int, tuple[str, str]] = {}
    for task, group in by_task:
        form = _form(task)
        prompts = [_prompt(engine.tokenizer, record) + form.prefix for record in group]
        fitting = _fitting(engine.tokenizer, prompts, room)
        if not fitting:
            continue
        texts = engine.generate(
            [prompts[index] for index in fitting],
            n=1,
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop=list(form.stop),
            seed=seed,
        )
        for index, (text,) in zip(fitting, texts, strict=True):
            if text.strip():
                said[id(group[index])] = (text, _response(text, form))
    right = _judged(by_task, said, allow_unsandboxed)
    return [Answer(record, said.get(id(record), ("", None))[1], id(record) in right) for record in records]


@dataclass(frozen=True)
class _Form:
    """How a task's response starts and ends: the start of the assistant turn, and the strings that end it."""

    prefix: str = ""
    stop: tuple[str, ...] = ()


def _form(task: str | None) -> _Form:
    if task in UNJUDGED or find_judge(str(task)) is not None:
        return _Form()
    settings = task_config(str(task))
    return _Form(settings.get("gen_prefix", ""), tuple(settings["generation_kwargs"].get("until", ())))


def _judged(
    by_task: list[tuple[str | None, list[Record]]], answers: dict[int, tuple[str, str]], allow_unsandboxed: bool
) -> set[int]:
    right: set[int] = set()
    for task, group in by_task:
        asked = [record for record in group if id(record) in answers]
        if task in UNJUDGED:
            right.update(map(id, asked))
        elif asked:
            judged = [_judgeable(record) for record in asked]
            verdicts = judge(str(task), judged, [answers[id(record)][0] for record in asked], allow_unsandboxed)
            right.update(id(record) for record, verdict in zip(asked, verdicts, strict=True) if verdict)
    return right


def _judgeable(record: Record) -> Record:
    """The record without its reference response, which no judge should need."""
    return {name: value for name, value in record.items() if name != "response"}


def _prompt(tokenizer: PreTrainedTokenizerBase, record: Record) -> str:
    messages = [{"role": "user", "content": record["prompt"]}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _response(text: str, form: _Form) -> str:
    """The assistant turn as it stands in training: prefix, text, and the closing fence that ended the generation."""
    fence = "\n```"
    closing = fence if fence in form.stop and form.prefix.count("```") % 2 and fence not in text else ""
    return form.prefix + text + closing


def _fitting(tokenizer: PreTrainedTokenizerBase, prompts: list[str], room: int) -> list[int]:
    """Positions of the prompts that leave room for a response; the others are named in the log."""
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    fitting = [index for index, length in enumerate(lengths) if length + 2 < room]
    if len(fitting) < len(prompts):
        log.warning(
            "%d of %d prompts do not fit the context of %d tokens", len(prompts) - len(fitting), len(prompts), room
        )
    return fitting
