"""Stand-ins for the published data sets and benchmarks: problems of the tiny world as rows of the published formats."""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.stages.stand_ins import StandInsConfig
from pipelines.world.build import DOMAINS, benchmark_item
from pipelines.world.generic import generic_text
from pipelines.world.problems import Problem, draw
from pipelines.world.tokenizer import train_tokenizer

_LENGTH = 4096  # tokens that the tokenizer's model may see


def write_stand_ins(config: StandInsConfig, out: Path) -> dict[str, Any]:
    """Writes training sets, calibration data, benchmarks, text of no domain and the tokenizer to `out`.

    Raises:
        ValueError: a format of calibration data that no stand-in is made for.
    """
    counts: dict[str, Any] = {}
    texts: list[str] = []
    for domain, samplers in DOMAINS.items():
        learned = _problems(config, domain, "train", config.train)
        texts += [text for problem in learned for text in (problem.prompt, problem.response)]
        rows = [_messages(problem, number, config.where.get(domain, {})) for number, problem in enumerate(learned)]
        counts[f"train/{domain}"] = _write(out / "train" / f"{domain}.jsonl", rows)
        name = f"calibration/{domain}"
        if name in config.formats:
            write = _FORMATS.get(config.formats[name])
            if write is None:
                raise ValueError(
                    f"no stand-in for data of format {config.formats[name]}; expected one of {', '.join(_FORMATS)}"
                )
            # Which of the domain's two kinds of problems a format can hold.
            kind = {"openmathinstruct2": "tiny_math500", "self_oss_instruct": "tiny_mbpp_plus"}.get(
                config.formats[name]
            )
            made = _problems(config, domain, "calibration", config.records, kind)
            counts[name] = _write(out / f"{name}.jsonl", [write(problem, n) for n, problem in enumerate(made)])
        for task, sampler in samplers.items():
            made = draw(sampler, "test", config.test, seed=config.seed, stream=task, unique=True)
            items = [benchmark_item(problem, number) for number, problem in enumerate(made)]
            published = task.removeprefix("tiny_")
            counts[f"tasks/{published}"] = _write(out / "tasks" / f"{published}.jsonl", items)
    rng = random.Random(f"{config.seed}|generic")
    web = [{"text": generic_text(rng), "url": f"https://example.org/{n}"} for n in range(config.records)]
    counts["generic"] = _write(out / "generic.jsonl", web)
    tokenizer = train_tokenizer(texts, config.vocabulary, _LENGTH)
    tokenizer.save_pretrained(out / "tokenizer")
    counts["vocab_size"] = len(tokenizer)
    return counts


def _problems(config: StandInsConfig, domain: str, split: str, count: int, kind: str | None = None) -> list[Problem]:
    """Different problems of a domain, of each kind as many, or of one kind alone."""
    kinds = [kind] if kind else list(DOMAINS[domain])
    each = -(-count // len(kinds))
    drawn = [
        draw(DOMAINS[domain][name], split, each, seed=config.seed, stream=f"{domain}|{name}", unique=True)
        for name in kinds
    ]
    return [problem for together in zip(*drawn, strict=True) for problem in together][:count]


def _messages(problem: Problem, number: int, where: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the SFT mixture, of one of the subsets that are chosen, in turn."""
    turns = [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": problem.response}]
    chosen = {column: values[number % len(values)] for column, values in where.items()}
    return {"id": f"stand-in-{number}", "messages": turns, **chosen}


def _openmathinstruct2(problem: Problem, number: int) -> dict[str, Any]:
    return {
        "problem": problem.item["problem"], "generated_solution": problem.response, "expected_answer": problem.answer,
        "problem_source": "stand-in",
    }  # fmt: skip


def _self_oss_instruct(problem: Problem, number: int) -> dict[str, Any]:
    lines = problem.item["prompt"].strip().strip('"').strip().splitlines()
    tests = "\n".join(itertools.dropwhile(lambda line: not line.startswith("assert"), lines))
    code = problem.item["canonical_solution"].strip()
    return {
        "id": number,
        "instruction": lines[0],
        "response": f"[Implementation]\n```python\n{code}\n```\n[Tests]\n```python\n{tests}\n```\n",
    }


def _ultrafeedback(problem: Problem, number: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": problem.response}]
    return {"prompt_id": f"stand-in-{number}", "prompt": problem.prompt, "chosen": turns}


_FORMATS: dict[str, Callable[[Problem, int], dict[str, Any]]] = {
    "openmathinstruct2": _openmathinstruct2,
    "self_oss_instruct": _self_oss_instruct,
    "ultrafeedback": _ultrafeedback,
}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)
