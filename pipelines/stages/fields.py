"""Settings classes of the library as Hydra schemas: the same fields and defaults, in the types that OmegaConf takes."""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def fields_of(settings: type, base: type) -> Any:
    """A dataclass below `base` with the fields of a settings class, not frozen and not checked by it.

    A Literal of words becomes str, other unions than with None become Any: the settings class checks them.
    """
    hints = get_type_hints(settings)
    listed = [
        (field.name, _plain(hints[field.name]), dataclasses.field(default=field.default))
        for field in dataclasses.fields(settings)
    ]
    return dataclasses.make_dataclass(
        f"{settings.__name__}Fields", listed, bases=(base,), namespace={"__module__": __name__}
    )


def settings_of(config: Any, settings: type, prefix: str) -> Any:
    """The settings that a schema made by `fields_of` holds. prefix: of its keys, for what is refused.

    Raises:
        ValueError: as the settings class, with the key.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(settings)}
    try:
        return settings(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}.{error}") from None


def _plain(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return str if all(isinstance(word, str) for word in get_args(kind)) else Any
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_plain(part) for part in get_args(kind) if part is not type(None)]
        if len(parts) == 1 and parts[0] is not Any:
            return parts[0] | None if type(None) in get_args(kind) else parts[0]
        return Any
    return kind
