"""The paper's tables as it prints them, one CSV a table, and how to read them.

Source: "When Model Merging Breaks Routing: Training-Free Calibration for MoE" (ICML 2026), tables 1 and 3 to 7; the
numbers are copied, not computed. Row names and column order here are those of our own tables.
"""

import csv
import io
from importlib import resources

# Which table of the paper an experiment's numbers can be held against, at which scale.
_PUBLISHED = {
    ("table1", "olmoe"): "table1",
    ("table1", "qwen3"): "table6",
    ("table3", "olmoe"): "table3",
    ("table4", "olmoe"): "table4",
    ("table5", "olmoe"): "table5",
    ("table6", "qwen3"): "table6",
    ("table7", "olmoe"): "table7",
}


def published(experiment: str, scale: str) -> str | None:
    """The table of the paper that has this experiment's numbers at this scale, or None."""
    return _PUBLISHED.get((experiment, scale))


def paper_values(name: str, keys: int) -> dict[tuple[str, ...], dict[str, float]]:
    """A table's numbers by row: the first `keys` columns name the row; empty places are left out."""
    header, rows = read_paper(name)
    return {
        tuple(row[column] for column in header[:keys]): {
            column: float(row[column]) for column in header[keys:] if row[column]
        }
        for row in rows
    }


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
