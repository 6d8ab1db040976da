"""`+experiment=table2`: the settings in use against those that the paper states and that its authors' code has.

Ours are read from what the command line composes, the merging methods as the paper's experiments merge; theirs stand in
published_settings.csv beside this file, each with its place.
"""

import csv
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.markup import escape
from rich.table import Table

from eval.tasks import task_config
from harc.merging.registry import find_method, methods
from pipelines.config import Config
from pipelines.config.merging import merge_settings
from pipelines.console import default_console
from pipelines.report.build import write_folder

log = logging.getLogger(__name__)

_STATED = Path(__file__).with_name("published_settings.csv")
_HEADER = ("setting", "key", "ours", "paper", "code", "where")


@dataclass(frozen=True)
class Setting:
    """One line of the page; values as the page shows them, theirs empty where nothing is stated."""

    setting: str
    key: str
    ours: str
    paper: str
    code: str
    where: str

    def agrees(self, other: str) -> bool | None:
        """Whether ours is theirs, `paper` or `code`; None where they state nothing."""
        theirs = getattr(self, other)
        return _same(self.ours, theirs) if theirs else None


def show_settings(config: Config) -> int:
    """Prints the page and writes it to reports/table2-<scale> of the outputs folder; 0."""
    words = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+").startswith("experiment")]
    found = settings_in_use(config, functools.partial(_merge_of, words))
    counts = {
        other: (sum(one.agrees(other) is True for one in found), sum(one.agrees(other) is not None for one in found))
        for other in ("paper", "code")
    }
    said = (
        f"{counts['paper'][0]} of {counts['paper'][1]} settings are the paper's, {counts['code'][0]} of "
        f"{counts['code'][1]} its authors' code's."
    )
    table = Table(title=f"Settings in use (scale: {config.scale.name})", caption=said)
    for column in _HEADER:
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_row(*(_marked(one, name) for name in _HEADER))
    default_console().print(table)
    folder = Path(config.outputs) / "reports" / f"table2-{config.scale.name}"
    write_folder(folder, {"table.md": _markdown(found, said, config.scale.name)})
    log.info("the page: %s", folder / "table.md")
    return 0


def settings_in_use(config: Config, merge_of: Callable[[str], Mapping[str, Any]]) -> list[Setting]:
    """Every line of the page.

    Args:
        config: composed; anything but merging methods is read from it.
        merge_of: method -> its settings, as the paper's experiments merge.
    """
    with _STATED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    plain = dataclasses.asdict(config)
    plain["calibrate"] = {**plain["calibrate"], "dtype": plain["calibrate"].get("dtype") or config.scale.dtype}
    return [
        Setting(row["setting"], row["key"], _shown(_value(row["key"], plain, merge_of)), row["paper"], row["code"],
                row["where"])
        for row in rows
    ]  # fmt: skip


def _value(key: str, plain: Mapping[str, Any], merge_of: Callable[[str], Mapping[str, Any]]) -> Any:
    first, _, rest = key.partition(".")
    if first == "tokens":
        return plain["scale"]["max_new_tokens"] or task_config(rest)["generation_kwargs"]["max_gen_toks"]
    found: Any = merge_of(first) if first in methods() else plain[first]
    for part in rest.split("."):
        found = found[part]
    return found


def _merge_of(words: list[str], method: str) -> Mapping[str, Any]:
    merging = ("merge=", "merge.", "calibrate", "merges")
    kept = [word for word in words if not word.lstrip("+").startswith(merging)]
    composed = OmegaConf.to_object(compose("config", [*kept, f"merge={method}", "merge.published=true"]))
    assert isinstance(composed, Config)
    return merge_settings(find_method(method), composed.merge, list(composed.domains))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {number:g}" for name, number in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def _marked(one: Setting, name: str) -> str:
    text = escape(getattr(one, name))
    return f"[red]{text}[/]" if name in ("paper", "code") and one.agrees(name) is False else text


def _markdown(found: list[Setting], said: str, scale: str) -> str:
    def cell(one: Setting, name: str) -> str:
        text = getattr(one, name).replace("|", "\\|") or "–"
        return f"**{text}**" if name in ("paper", "code") and one.agrees(name) is False else text

    lines = [f"# Table 2: Settings in use (scale: {scale})", "", f"{said} Bold: not ours.", ""]
    lines += [f"| {' | '.join(_HEADER)} |", f"|{' --- |' * len(_HEADER)}"]
    lines += [f"| {' | '.join(cell(one, name) for name in _HEADER)} |" for one in found]
    return "\n".join(lines) + "\n"
