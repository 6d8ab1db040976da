"""The model card of a merge: what it was made of, by which method, and where that was published."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harc.merging.driver import MergeReport


def write_card(folder: Path, report: "MergeReport", sources: Sequence[str], base: str | None) -> None:
    """Writes README.md into a merged checkpoint's folder; models are named by the last part of their path."""
    names = [Path(source).name for source in sources]
    method = f"[{report.label}]({report.reference})" if report.reference else report.label
    settings = {name: value for name, value in report.settings.items() if name != "weights"}
    lines = [
        "---",
        "base_model:",
        *(f"- {name}" for name in [*([Path(base).name] if base else []), *names]),
        "tags:",
        "- merge",
        "- moe",
        "- harc",
        "---",
        f"# {report.label} of {', '.join(names)}",
        "",
        f"- method: {method} (`{report.method}`), by HARC",
        *([f"- base: `{Path(base).name}`"] if base else []),
        *(f"- source: `{name}`, weight {weight:g}" for name, weight in zip(names, report.weights, strict=True)),
        *([f"- settings: {', '.join(f'{key}={value}' for key, value in settings.items())}"] if settings else []),
        *(f"- `{Path(source).name}`: {words}" for source, words in report.experts.items()),
        *(f"- note: {note}" for note in report.notes),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
