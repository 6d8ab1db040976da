"""The sample stage: one domain's calibration set, in the composition asked for (METHOD section 7).

srccrt: the source model answers the prompts greedily, and the correct responses stay; srcall: all of them stay.
gt: the data's reference responses. prompt: prompts alone. c4: text of no domain.
Correctness is decided by the judges of the benchmarks: the final answer for math, the tests for code.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from eval.engines import load_engine
from eval.evaluation import task_config
from eval.judges import judge
from pipelines.config import SampleConfig
from pipelines.data import load_records

Record = dict[str, Any]

log = logging.getLogger(__name__)

UNJUDGED = (None, "chat")


def sample(config: SampleConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Writes `<composition>.jsonl`, the calibration records, and `rejected.jsonl`, those left out and why.

    Args:
        config: prompts, composition, and how responses are generated.
        inputs: `source`, the domain's source model (or `config.source`, a hub id); `world` for data paths `world:…`.
        out: the stage's directory.

    Returns:
        kept, of, share, and both counts by task.

    Raises:
        ValueError: an unknown composition, or fewer than `config.min_kept` records left.
    """
    if config.composition not in COMPOSITIONS:
        raise ValueError(f"unknown composition '{config.composition}'; valid: {', '.join(sorted(COMPOSITIONS))}")
    records = load_records(config.data, inputs.get("world"))
    kept, rejected = COMPOSITIONS[config.composition](config, inputs, records)
    _write(out / f"{config.composition}.jsonl", kept)
    _write(out / "rejected.jsonl", rejected)
    share = len(kept) / len(records)
    log.info("%s: kept %d of %d (%.1f %%)", config.data.path, len(kept), len(records), 100 * share)
    if len(kept) < config.min_kept:
        raise ValueError(
            f"{config.data.path}: kept {len(kept)} of {len(records)} records ({100 * share:.1f} %), fewer than "
            f"min_kept={config.min_kept}; those left out are in {out / 'rejected.jsonl'}. Take more prompts, a better "
            "source model or calibration_data=prompt, or lower scale.sample.min_kept"
        )
    tasks = sorted({str(record["task"]) for record in records})
    by_task = {task: {"kept": _count(kept, task), "of": _count(records, task)} for task in tasks}
    return {"kept": len(kept), "of": len(records), "share": share, "tasks": by_task}


def _count(records: list[Record], task: str) -> int:
    return sum(str(record["task"]) == task for record in records)


def _write(path: Path, records: list[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def prompts_alone(
    config: SampleConfig, inputs: dict[str, Path], records: list[Record]
) -> tuple[list[Record], list[Record]]:
    """Prompt: nothing is generated, the router sees user turns only."""
    return [{**record, "response": None, "messages": None} for record in records], []


def correct_source_responses(
    config: SampleConfig, inputs: dict[str, Path], records: list[Record]
) -> tuple[list[Record], list[Record]]:
    """SrcCrt: the source model's greedy responses, the correct ones."""
    kept, rejected = [], []
    for record, answered, correct in _answer(config, inputs, records):
        if not correct:
            rejected.append({**record, "response": answered, "reason": "no response" if answered is None else "wrong"})
        else:
            kept.append({**record, "response": answered, "messages": None})
    return kept, rejected


def all_source_responses(
    config: SampleConfig, inputs: dict[str, Path], records: list[Record]
) -> tuple[list[Record], list[Record]]:
    """SrcAll: the source model's greedy responses, right or wrong."""
    kept, rejected = [], []
    for record, answered, _ in _answer(config, inputs, records):
        if answered is None:
            rejected.append({**record, "response": None, "reason": "no response"})
        else:
            kept.append({**record, "response": answered, "messages": None})
    return kept, rejected


def reference_answers(
    config: SampleConfig, inputs: dict[str, Path], records: list[Record]
) -> tuple[list[Record], list[Record]]:
    """GT: the data's own reference responses; nothing is generated."""
    kept = [record for record in records if record.get("response")]
    rejected = [{**record, "reason": "no reference response"} for record in records if not record.get("response")]
    return kept, rejected


def generic_text(
    config: SampleConfig, inputs: dict[str, Path], records: list[Record]
) -> tuple[list[Record], list[Record]]:
    """C4: the data is text of no domain, and is taken as it is."""
    return records, []


COMPOSITIONS: dict[str, Callable[[SampleConfig, dict[str, Path], list[Record]], tuple[list[Record], list[Record]]]] = {
    "srccrt": correct_source_responses,
    "srcall": all_source_responses,
    "gt": reference_answers,
    "prompt": prompts_alone,
    "c4": generic_text,
}


@dataclass(frozen=True)
class _Form:
    """How a task's response starts and ends: the start of the assistant turn, and the strings that end it."""

    prefix: str = ""
    stop: tuple[str, ...] = ()


def _form(task: str | None) -> _Form:
    if task in UNJUDGED:
        return _Form()
    settings = task_config(str(task))
    return _Form(settings.get("gen_prefix", ""), tuple(settings["generation_kwargs"].get("until", ())))


def _answer(
    config: SampleConfig, inputs: dict[str, Path], records: list[Record]
) -> list[tuple[Record, str | None, bool]]:
    """Each record with the source model's response (None: prompt too long, or nothing said) and whether it is right."""
    model = str(inputs.get("source") or config.source or "")
    if not model:
        raise ValueError("sample: no source model; give the input `source` or set `source` to a folder or hub id")
    by_task = [
        (task, list(group))
        for task, group in groupby(
            sorted(records, key=lambda record: str(record["task"])), key=lambda record: record["task"]
        )
    ]
    forms = {task: _form(task) for task, _ in by_task}
    answers: dict[int, tuple[str, str]] = {}
    engine = load_engine(config.engine, model)
    try:
        room = config.engine.max_model_len or AutoConfig.from_pretrained(model).max_position_embeddings
        for task, group in by_task:
            prompts = [_prompt(engine.tokenizer, record) + forms[task].prefix for record in group]
            fitting = _fitting(engine.tokenizer, prompts, room)
            texts = engine.generate(
                [prompts[index] for index in fitting],
                n=1,
                temperature=0.0,
                max_tokens=config.max_new_tokens,
                stop=list(forms[task].stop),
                seed=config.seed,
            )
            for index, (text,) in zip(fitting, texts, strict=True):
                if text.strip():
                    answers[id(group[index])] = (text, _response(text, forms[task]))
    finally:
        engine.close()
    right = _judged(by_task, answers)
    return [(record, answers.get(id(record), ("", None))[1], id(record) in right) for record in records]


def _judged(by_task: list[tuple[str | None, list[Record]]], answers: dict[int, tuple[str, str]]) -> set[int]:
    right: set[int] = set()
    for task, group in by_task:
        answered = [record for record in group if id(record) in answers]
        if task in UNJUDGED:
            right.update(map(id, answered))
        elif answered:
            judged = [_judgeable(record) for record in answered]
            verdicts = judge(str(task), judged, [answers[id(record)][0] for record in answered])
            right.update(id(record) for record, verdict in zip(answered, verdicts, strict=True) if verdict)
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
