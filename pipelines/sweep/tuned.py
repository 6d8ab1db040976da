"""Settings of merging methods chosen on validation problems: written by +experiment=grid, taken by `tuned=FILE`.

scale: tiny
domains: [math, code]
merge:
ties: {density: 0.4}
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import Config

FILE = "tuned.yaml"


def tuned_text(scale: str, domains: list[str], settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's text: the settings chosen for each method at a scale and for these domains."""
    chosen = {method: dict(values) for method, values in settings.items()}
    text = yaml.safe_dump({"scale": scale, "domains": domains, "merge": chosen}, sort_keys=False)
    return f"# Chosen on validation problems by +experiment=grid scale={scale}; take it with tuned=THIS FILE\n{text}"


def apply_tuned(config: Config) -> Config:
    """The configuration with the chosen settings of its merging method; as it is without `tuned` or for another method.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another scale or other domains, malformed, or with settings the method doesn't have.
    """
    if config.tuned is None:
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
    settings = found["merge"].get(config.merge.method, {})
    known = {field.name for field in dataclasses.fields(config.merge)} - {"method", "label", "published"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"tuned={path}: {config.merge.method} has no setting {unknown[0]}; it has {sorted(known)}")
    return dataclasses.replace(config, merge=dataclasses.replace(config.merge, **settings))
