"""Evaluates one checkpoint from the command line: python -m eval --model PATH --tasks gsm8k,math500."""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval import TASKS, EngineConfig, EngineError, check_tasks, evaluate, load_engine
from eval.data import DataError
from eval.judges.evalplus import JudgeError
from eval.sandbox.process import SandboxError
from eval.task_folder import check_folder, evaluate_folder

DESCRIPTION = """\
Evaluates a checkpoint: samples each problem, judges the samples, and writes accuracies with 95 % intervals.

examples:
  python -m eval --model outputs/merge/wudi-1a2b --tasks gsm8k,math500
  python -m eval --model PATH --tasks humaneval_plus --data humaneval_plus=HumanEvalPlus.jsonl.gz --limit 20
  python -m eval --model PATH --tasks gsm8k --engine transformers --samples 4
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "datasets", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        data = dict(pair.split("=", 1) for pair in options.data)
        names = [options.tasks] if ":" in options.tasks else [name for name in options.tasks.split(",") if name]
        unused = [name for name in data if name not in names]
        if unused:
            raise ValueError(f"--data names {unused}, which --tasks does not")
        tasks = {name: data.get(name) for name in names}
        run: Callable[..., dict[str, Any]] = functools.partial(
            evaluate, tasks=tasks, allow_unsandboxed=options.allow_unsandboxed
        )
        if options.task_folder is not None:
            run = _folder_run(options.task_folder, names, options.data)
        else:
            check_tasks(tasks, options.allow_unsandboxed)
        config = EngineConfig(kind=options.engine, dtype=options.dtype, max_model_len=options.max_model_len)
        engine = load_engine(config, options.model)
        try:
            results = run(
                engine,
                samples=options.samples,
                temperature=options.temperature,
                seed=options.seed,
                limit=options.limit,
                max_new_tokens=options.max_new_tokens,
                out=options.out,
            )
        finally:
            engine.close()
    except (DataError, EngineError, JudgeError, SandboxError, ValueError) as error:
        logging.error("%s", error)
        return 1
    for name, result in results.items():
        logging.info(
            "%-20s %6.2f ± %.2f %%  (%d problems, %d samples each)",
            name,
            100 * result["accuracy"],
            100 * result["ci95"],
            len(result["ids"]),
            result["samples"],
        )
    logging.info("%s", options.out / "results.json")
    return 0


def _folder_run(folder: str, names: list[str], data: list[str]) -> Callable[..., dict[str, Any]]:
    """The evaluation of a folder's tasks, checked. names: each with its metric after a colon, where it has several."""
    if data:
        raise ValueError("--data is of our own tasks: files of --task-folder name their own data")
    metrics = {name: metric or None for name, _, metric in (name.partition(":") for name in names)}
    check_folder(folder, metrics)
    return functools.partial(evaluate_folder, folder=folder, tasks=metrics)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint directory or hub id")
    parser.add_argument("--tasks", required=True, help=f"comma-separated: {', '.join(TASKS)}")
    parser.add_argument(
        "--data",
        nargs="*",
        default=[],
        metavar="TASK=FILE",
        type=_pair,
        help="local .jsonl or .jsonl.gz files in place of the published data sets",
    )
    parser.add_argument(
        "--task-folder",
        metavar="DIR",
        help="task files in lm-eval's format instead of ours, or lm_eval: its own; a task with several metrics or "
        "filters is given as TASK:METRIC,FILTER, alone",
    )
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="output directory (default: evaluation)")
    parser.add_argument("--samples", type=int, default=16, help="samples a problem (default: 16)")
    parser.add_argument("--temperature", type=float, default=0.1, help="sampling temperature (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--limit", type=int, help="the first so many problems of each task (default: all)")
    parser.add_argument("--max-new-tokens", type=int, help="tokens a response may have (default: the task's own limit)")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"), help="default: vllm")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: by the device)")
    parser.add_argument("--max-model-len", type=int, help="context in tokens (default: the model's own)")
    parser.add_argument(
        "--allow-unsandboxed", action="store_true", help="run generated code even where the sandbox does not hold"
    )
    return parser.parse_args(arguments)


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected TASK=FILE")
    return text


if __name__ == "__main__":
    sys.exit(main())
