"""Evaluates one checkpoint from the command line: python -m eval --model PATH --tasks gsm8k,math500."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eval import TASKS, EngineConfig, EngineError, check_tasks, evaluate, load_engine
from eval.data import DataError
from eval.judges.evalplus import JudgeError

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
        names = [name for name in options.tasks.split(",") if name]
        unused = [name for name in data if name not in names]
        if unused:
            raise ValueError(f"--data names {unused}, which --tasks does not")
        tasks = {name: data.get(name) for name in names}
        check_tasks(tasks)
        config = EngineConfig(kind=options.engine, dtype=options.dtype, max_model_len=options.max_model_len)
        engine = load_engine(config, options.model)
        try:
            results = evaluate(
                engine,
                tasks,
                samples=options.samples,
                temperature=options.temperature,
                seed=options.seed,
                limit=options.limit,
                max_new_tokens=options.max_new_tokens,
                out=options.out,
            )
        finally:
            engine.close()
    except (DataError, EngineError, JudgeError, ValueError) as error:
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
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="output directory (default: evaluation)")
    parser.add_argument("--samples", type=int, default=16, help="samples a problem (default: 16)")
    parser.add_argument("--temperature", type=float, default=0.1, help="sampling temperature (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--limit", type=int, help="the first so many problems of each task (default: all)")
    parser.add_argument("--max-new-tokens", type=int, help="tokens a response may have (default: the task's own limit)")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"), help="default: vllm")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: by the device)")
    parser.add_argument("--max-model-len", type=int, help="context in tokens (default: the model's own)")
    return parser.parse_args(arguments)


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected TASK=FILE")
    return text


if __name__ == "__main__":
    sys.exit(main())
