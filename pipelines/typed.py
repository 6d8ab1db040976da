"""A dataclass from JSON values and back, every field checked; what this version does not know is kept as it came.

A class that keeps unknown fields has a field `other: dict[str, Any]`; a class without one drops them.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
OTHER = "other"


class ShapeError(ValueError):
    """A value of another shape than its field's; the message names the field, what was found and what was expected."""


def from_json(kind: type[T], value: Any, where: str) -> T:
    """The value as an instance of a dataclass.

    Args:
        kind: the dataclass.
        value: as json.loads gives it.
        where: what the value is, for the message of an error (a file's path).

    Raises:
        ShapeError: a field that is missing or of another shape, e.g. `cell.json: tasks.gsm8k.samples: expected int,
            found str '16'`.
    """
    return _read(kind, value, where, "")


def to_json(value: Any) -> Any:
    """A dataclass, or a container of them, as plain JSON values; unknown fields stand where they were found."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {one.name: to_json(getattr(value, one.name)) for one in dataclasses.fields(value) if one.name != OTHER}
        return {**known, **getattr(value, OTHER, {})}
    if isinstance(value, Mapping):
        return {str(key): to_json(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inside) for inside in value]
    return value


def _read(kind: Any, value: Any, where: str, at: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, where, at)
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (given,) = (one for one in inside if one is not type(None))
        return None if value is None else _read(given, value, where, at)
    if origin is dict:
        _expect(isinstance(value, Mapping), "a mapping", value, where, at)
        return {str(key): _read(inside[1], one, where, f"{at}.{key}") for key, one in value.items()}
    if origin is list:
        _expect(isinstance(value, list | tuple), "a list", value, where, at)
        return [_read(inside[0], one, where, f"{at}[{i}]") for i, one in enumerate(value)]
    accepted = (int, float) if kind is float else kind
    right = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    _expect(right, kind.__name__, value, where, at)
    return value


def _read_fields(kind: Any, value: Any, where: str, at: str) -> Any:
    _expect(isinstance(value, Mapping), f"the fields of {kind.__name__}", value, where, at)
    hints = _hints(kind)
    known: dict[str, Any] = {}
    for one in dataclasses.fields(kind):
        if one.name == OTHER:
            continue
        if one.name in value:
            known[one.name] = _read(hints[one.name], value[one.name], where, f"{at}.{one.name}")
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            found = ", ".join(map(str, value)) or "none"
            raise ShapeError(f"{where}: {_named(f'{at}.{one.name}')} is missing (fields found: {found})")
    if OTHER in hints:
        known[OTHER] = {str(key): one for key, one in value.items() if key not in hints}
    return kind(**known)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _expect(right: bool, expected: str, value: Any, where: str, at: str) -> None:
    if not right:
        text = repr(value)
        found = f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
        raise ShapeError(f"{where}: {_named(at)}: expected {expected}, found {found}")


def _named(at: str) -> str:
    return at.lstrip(".") or "the whole"
