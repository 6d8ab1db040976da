"""Writes the parts of docs/ that are made from the code: `python -m pipelines.tools.docs`.

A part stands between two comments, `<!-- made: NAME -->` and `<!-- end: NAME -->`; what is between them is replaced.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import harc
from harc.merging.registry import Method, methods
from pipelines.config.merging import settings_rows
from pipelines.places import ROOT

COSTS = ROOT / "benchmarks" / "merge_costs.json"  # written by benchmarks/merge_costs.py


def methods_table() -> str:
    """The merging methods of harc: what they do, what they read, and what they cost beside averaging."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))["checkpoints"]
    lines = ["| option | method | reads text | time | memory | what it does |", "| --- | --- | --- | --- | --- | --- |"]
    for found in _own_methods():
        data = found.reads if found.kind == "data" else "no"
        cost = costs.get(found.name, {})
        ratios = [f"{cost[key]:.2g} ×" if cost else "–" for key in ("cpu_seconds_ratio", "memory_gb_ratio")]
        name = f"[{found.label}]({found.reference})"
        lines.append(f"| `{found.name}` | {name} | {data} | {' | '.join(ratios)} | {_plain(found.summary)} |")
    unmerged = {
        "individual": "nothing is merged: each source on its own domain; with `calibrate=none`",
        "base": "nothing is merged: the model the sources were tuned from; with `calibrate=none`",
    }
    lines += [f"| `{name}` | {name.title()} | – | – | – | {what} |" for name, what in unmerged.items()]
    return "\n".join(lines)


def layer_costs_table() -> str:
    """What a layer's experts cost by the methods that work on singular values."""
    lines = ["| option | matrices of a layer | CPU seconds, two sources |", "| --- | --- | --- |"]
    for name, cost in json.loads(COSTS.read_text(encoding="utf-8"))["layer"].items():
        lines.append(f"| `{name}` | {cost['experts']} × {cost['rows']} × {cost['columns']} | {cost['seconds']:.0f} |")
    return "\n".join(lines)


def settings_table() -> str:
    """Every setting of every method, with its default, meaning and range."""
    lines = ["| option | key | default | meaning |", "| --- | --- | --- | --- |"]
    for found in _own_methods():
        for key, default, meaning in settings_rows(found):
            lines.append(f"| `{found.name}` | `merge.{key}` | `{default}` | {meaning} |")
    return "\n".join(lines)


def published_table() -> str:
    """The settings that `merge.published=true` changes."""
    lines = ["| option | key | default | published |", "| --- | --- | --- | --- |"]
    for found in _own_methods():
        defaults = {one.name: one.default for one in dataclasses.fields(found.settings)}
        for key, value in found.published().items():
            lines.append(f"| `{found.name}` | `merge.{key}` | `{_word(defaults[key])}` | `{_word(value)}` |")
    return "\n".join(lines)


def reference() -> str:
    """One entry of the reference for every public name of harc: functions, then settings and results."""
    names = sorted(harc.__all__, key=lambda name: (name[0].isupper(), name))
    return "\n\n".join(f"::: {getattr(harc, name).__module__}.{name}" for name in names)


def _own_methods() -> list[Method]:
    return [found for found in methods().values() if found.function.__module__.partition(".")[0] == "harc"]


def _plain(sentence: str) -> str:
    return (sentence[:1].lower() + sentence[1:]).rstrip(".")


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/merge.md": {
        "methods": methods_table,
        "layer": layer_costs_table,
        "settings": settings_table,
        "published": published_table,
    },
    "docs/reference.md": {"harc": reference},
}


def made(page: str, text: str) -> str:
    """The text of a page with its parts made anew.

    Raises:
        ValueError: a part whose comments are not in the page.
    """
    for name, make in PARTS[page].items():
        begin, end = f"<!-- made: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page}: expected {begin} and {end}, once each")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Rewrites the pages."""
    for page in PARTS:
        path = Path(ROOT / page)
        path.write_text(made(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
