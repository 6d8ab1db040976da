"""Judges LaTeX answers with math-verify: one JSON line [gold, response] in, one JSON line true or false out.

A process of its own, for two reasons: math-verify's timeouts are signals, which only a main thread can take, and some
answers (a tower of powers) keep the interpreter inside one C call that no signal ends; its parent then kills it.
"""

import json
import logging
import sys

from math_verify import LatexExtractionConfig, parse, verify

SECONDS = 5  # math-verify's own limit for one parse and for one comparison


def right(gold: str, response: str) -> bool:
    """Whether math-verify finds the gold answer, itself LaTeX, in the response."""
    target = parse(f"\\boxed{{{gold}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=SECONDS)
    answer = parse(response, parsing_timeout=SECONDS)
    return bool(target and answer and verify(target, answer, timeout_seconds=SECONDS))


def main() -> None:
    logging.disable(logging.CRITICAL)
    # What a library prints must not reach the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        gold, response = json.loads(line)
        try:
            verdict = right(gold, response)
        except (Exception, RecursionError):
            verdict = False
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
