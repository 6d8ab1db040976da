"""The paper's tables as it prints them, one CSV a table, and how to read them.

Source: "When Model Merging Breaks Routing: Training-Free Calibration for MoE" (ICML 2026), tables 1 and 3 to 7; the
numbers are copied, not computed. Row names and column order here are those of our own tables.
"""

import csv
import io
from importlib import resources


def read_paper(name: str) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of one table of the paper, e.g. `table1`, as text.

    Raises:
        KeyError: the paper has no table of that name here; the message lists those it has.
    """
    file = resources.files(__name__) / f"{name}.csv"
    if not file.is_file():
        raise KeyError(f"no paper table {name!r}; there are {', '.join(paper_tables())}")
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def paper_tables() -> list[str]:
    """Names of the paper's tables that the package carries."""
    return sorted(entry.name[:-4] for entry in resources.files(__name__).iterdir() if entry.name.endswith(".csv"))
