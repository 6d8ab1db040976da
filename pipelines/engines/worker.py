"""Makes one stage: `python -m pipelines.engines.worker CONFIG KEY [--result FILE]`.

CONFIG is the resolved configuration of a cell that needs the stage (pipelines/engines/unit.py), KEY the stage's. The
result goes to FILE, `<KEY>.json` beside CONFIG unless given; the exit status is 0 if the stage stands.
"""

import argparse
import logging
import sys
from pathlib import Path

from pipelines.engines.unit import MADE, make_unit


def main(arguments: list[str] | None = None) -> int:
    """Does the unit of work that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes one stage of a cell.")
    parser.add_argument("config", type=Path, help="resolved configuration of a cell that needs the stage (JSON)")
    parser.add_argument("key", help="key of the stage, twelve hexadecimal digits")
    parser.add_argument("--result", type=Path, help="file for what came of it (default: KEY.json beside CONFIG)")
    given = parser.parse_args(arguments)
    log_lines()
    result = given.result or given.config.with_name(f"{given.key}.json")
    return int(make_unit(given.config, given.key, result).status != MADE)


def log_lines() -> None:
    """Log lines as the command line writes them, to standard error."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )


if __name__ == "__main__":
    sys.exit(main())
