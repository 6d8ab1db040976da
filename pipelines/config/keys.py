"""Keys that nothing would ever read, refused."""

import dataclasses
from typing import Any

from omegaconf import DictConfig, OmegaConf


def refuse_unknown_keys(node: DictConfig, at: str = "") -> None:
    """Refuses what `+key=value` appended to a typed node: Hydra lets it in, and nothing would ever read it.

    Raises:
        ValueError: names the key and the valid ones.
    """
    kind: Any = OmegaConf.get_type(node)
    typed = dataclasses.is_dataclass(kind)
    valid = sorted(field.name for field in dataclasses.fields(kind)) if typed else []
    for key in map(str, node):
        if typed and key not in valid:
            raise ValueError(f"unknown key {at}{key} (valid keys there: {', '.join(valid)})")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            refuse_unknown_keys(node[key], f"{at}{key}.")
