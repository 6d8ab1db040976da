"""Settings chosen on validation problems: written by +experiment=grid, taken by `tuned=FILE` and `tuned=auto`.

scale: tiny
domains: [math, code]
merge:
  ties: {density: 0.4}
calibrate:
  harc: {alpha: 0.9}
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import Config
from pipelines.stages.calibrate import HarcConfig

FILE = "tuned.yaml"
AUTO = "auto"  # pipelines/sweep/tuning.py puts a file in its place


def tuned_text(
    scale: str, domains: list[str], settings: Mapping[str, Mapping[str, Any]], alpha: float | None = None
) -> str:
    """The file's text: the settings chosen for each method at a scale and for these domains, and HARC's α."""
    chosen = {method: dict(values) for method, values in settings.items()}
    content: dict[str, Any] = {"scale": scale, "domains": domains, "merge": chosen}
    if alpha is not None:
        content["calibrate"] = {"harc": {"alpha": alpha}}
    text = yaml.safe_dump(content, sort_keys=False)
    return f"# Chosen on validation problems by +experiment=grid scale={scale}; take it with tuned=THIS FILE\n{text}"


def apply_tuned(config: Config, by_hand: Sequence[str] = ()) -> Config:
    """The configuration with the chosen settings of its merging method, and of HARC; as it is without such a file.

    Args:
        config: of a cell.
        by_hand: its overrides; a setting that one of them names stays as it says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another scale or other domains, malformed, or with settings the method doesn't have.
    """
    if config.tuned is None or config.tuned == AUTO:
        return config
    path = Path(config.tuned)
    if not path.is_file():
        raise FileNotFoundError(f"tuned={path}: no such file; +experiment=grid writes one into its report folder")
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, dict) or not isinstance(found.get("merge"), dict):
        raise ValueError(f"tuned={path}: expected scale, domains and merge (method -> settings)")
    for key, wanted in (("scale", config.scale.name), ("domains", list(config.domains))):
        if found.get(key) != wanted:
            raise ValueError(f"tuned={path}: chosen for {key} {found.get(key)}, asked for {wanted}")
    given = {word.lstrip("+").partition("=")[0] for word in by_hand}
    settings = found["merge"].get(config.merge.method, {})
    known = {field.name for field in dataclasses.fields(config.merge)} - {"method", "label", "published"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"tuned={path}: {config.merge.method} has no setting {unknown[0]}; it has {sorted(known)}")
    chosen = {name: value for name, value in settings.items() if f"merge.{name}" not in given}
    config = dataclasses.replace(config, merge=dataclasses.replace(config.merge, **chosen))
    alpha = ((found.get("calibrate") or {}).get("harc") or {}).get("alpha")
    if alpha is None or not isinstance(config.calibrate, HarcConfig):
        return config
    if given.intersection(("calibrate.alpha", "calibrate.beta", "calibrate.hessian")):
        return config
    chosen_alpha: Any = {"alpha": alpha}  # HarcConfig is made from SolveSettings at run time
    return dataclasses.replace(config, calibrate=dataclasses.replace(config.calibrate, **chosen_alpha))
