"""Python values as one line of JSON, for what goes in and out of a process that is not trusted.

JSON's own scalars and lists stand for themselves; everything else is an object of one tag:

    t tuple, s set, f frozenset, d dict (pairs), i large int (hex), x NaN and infinities, c complex, b bytes,
    a bytearray, q Fraction, m Decimal, z NumPy scalar, n NumPy array, y subclass of a builtin (its name, its content),
    o any other object (the name of its type alone)

Reading makes plain data only: no class of the writer, no code of its own, nothing that compares by other rules than
Python's. NumPy is used where it is loaded.
"""

import base64
import collections.abc
import decimal
import fractions
import functools
import json
import math
import numbers
import re
import sys
from typing import Any

_PLAIN = frozenset((str, int, float, bool, type(None)))
_SAFE_BITS = 1024  # larger integers go in hexadecimal: reading decimal digits takes quadratic time
_LONGEST_INT = 2**22  # hexadecimal digits
_LONGEST_RATIONAL = 10_000  # digits: reducing a fraction takes quadratic time
_DTYPE = re.compile(r"[<>|=]?[biufc][1248]|[<>=]c16|[<>=]U[0-9]{1,4}|[|]O")


class WireError(ValueError):
    """A line that is not in the format."""


class Opaque:
    """Stands for an object that is no plain data: equal to nothing but itself."""

    def __init__(self, name: str) -> None:
        self.name = name


def dumps(value: Any) -> str:
    """The value as one line.

    Raises:
        RecursionError: a value that is nested too deeply, or holds itself.
    """
    try:
        return json.dumps(_encode(value), allow_nan=False, separators=(",", ":"))
    except ValueError:  # NaN, infinity or a very large integer somewhere in a list of scalars
        return json.dumps(_encode(value, careful=True), allow_nan=False, separators=(",", ":"))


def loads(line: str | bytes) -> Any:
    """The value of a line that anyone may have written.

    Raises:
        WireError: a line that is not in the format.
        RecursionError: a line that is nested too deeply.
    """
    try:
        return decode(json.loads(line))
    except RecursionError:
        raise
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
        raise WireError(f"not a line of the wire format: {error}") from error


def _encode(value: Any, careful: bool = False) -> Any:
    kind: Any = type(value)
    if kind in _PLAIN:
        return _scalar(value) if careful else value
    if kind is list:
        if not careful and _PLAIN.issuperset(map(type, value)):
            return value
        return [_encode(item, careful) for item in value]
    tag = _TAGS.get(kind)
    if tag is not None:
        return {tag: [_encode(item, careful) for item in value]}
    if kind is dict:
        return {"d": [[_encode(key, careful), _encode(item, careful)] for key, item in value.items()]}
    return _rare(value, careful)


_TAGS = {tuple: "t", set: "s", frozenset: "f"}


def _scalar(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        return {"x": repr(value)}
    if type(value) is int and value.bit_length() > _SAFE_BITS:
        return {"i": format(value, "x")}
    return value


def _rare(value: Any, careful: bool) -> Any:
    kind = type(value)
    if kind is complex:
        return {"c": [_scalar(value.real), _scalar(value.imag)]}
    if kind in (bytes, bytearray):
        return {"b" if kind is bytes else "a": base64.b64encode(value).decode()}
    if kind is fractions.Fraction:
        return {"q": [format(value.numerator, "x"), format(value.denominator, "x")]}
    if kind is decimal.Decimal:
        return {"m": str(value)}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.number | numpy.bool_) and _DTYPE.fullmatch(value.dtype.str):
        return {"z": [value.dtype.str, _encode(value.item(), True)]}
    if numpy is not None and kind is numpy.ndarray and _DTYPE.fullmatch(value.dtype.str):
        return {"n": [value.dtype.str, list(value.shape), _encode(value.ravel().tolist(), True)]}
    return _subclass(value, careful)


def _subclass(value: Any, careful: bool) -> Any:
    """An object of a class derived from, or registered as, a plain one: its content; anything else: its type's name."""
    # Code that is run without a module's name makes classes without one.
    name = f"{getattr(type(value), '__module__', '')}.{type(value).__qualname__}"
    content: Any
    for base, take in _BASES:
        if isinstance(value, base):
            content = take(value)
            return {"y": [name, _encode(content, careful)]}
    return {"o": name}


_BASES: tuple[tuple[type, Any], ...] = (
    (str, lambda value: str.__str__(value)),
    (int, lambda value: int.__int__(value)),
    (float, lambda value: float.__float__(value)),
    (complex, lambda value: complex.__complex__(value)),
    (list, lambda value: list(list.__iter__(value))),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (dict, lambda value: dict(dict.items(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
    (collections.abc.Set, set),  # the keys of a dict, which equal a set
    (numbers.Integral, int),
    (numbers.Rational, lambda value: fractions.Fraction(int(value.numerator), int(value.denominator))),
    (numbers.Real, float),
)


def decode(value: Any) -> Any:
    """The Python value of parsed JSON; raises as `loads` does, but not always WireError."""
    kind = type(value)
    if kind is list:
        return value if _PLAIN.issuperset(map(type, value)) else [decode(item) for item in value]
    if kind is not dict:
        return value
    ((tag, content),) = value.items()
    return _DECODERS[tag](content)


def _items(content: Any) -> list[Any]:
    if type(content) is not list:
        raise WireError("expected a list")
    return [decode(item) for item in content]


def _integer(text: Any, longest: int = _LONGEST_INT) -> int:
    if type(text) is not str or len(text) > longest:
        raise WireError("an integer that is too long")
    return int(text, 16)


def _fraction(content: Any) -> fractions.Fraction:
    numerator, denominator = content
    return fractions.Fraction(_integer(numerator, _LONGEST_RATIONAL), _integer(denominator, _LONGEST_RATIONAL))


def _decimal(text: Any) -> decimal.Decimal:
    if type(text) is not str or len(text) > _LONGEST_RATIONAL:
        raise WireError("a decimal that is too long")
    return decimal.Decimal(text)


def _not_finite(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise WireError("expected nan, inf or -inf")
    return float(text)


def _complex(content: Any) -> complex:
    real, imaginary = _items(content)
    return complex(float(real), float(imaginary))


def _dtype(text: Any) -> Any:
    import numpy

    if type(text) is not str or not _DTYPE.fullmatch(text):
        raise WireError("not a dtype of plain data")
    return numpy.dtype(text)


def _numpy_scalar(content: Any) -> Any:
    text, value = content
    return _dtype(text).type(decode(value))


def _numpy_array(content: Any) -> Any:
    import numpy

    text, shape, values = content
    items = _items(values)
    array = numpy.empty(len(items), dtype=_dtype(text))
    array[:] = items
    return array.reshape([int(length) for length in shape])


def _of_subclass(content: Any) -> Any:
    name, value = content
    value = decode(value)
    if type(name) is not str or type(value) not in _DERIVABLE:
        raise WireError("not content that a class can derive from")
    base: Any = type(value)
    return _derived(name[:200], base)(value)


@functools.lru_cache(maxsize=256)
def _derived(name: str, base: Any) -> Any:
    return type(name, (base,), {})


_DERIVABLE = frozenset((str, int, float, complex, list, tuple, dict, set, frozenset, fractions.Fraction))
_DECODERS: dict[str, Any] = {
    "t": lambda content: tuple(_items(content)),
    "s": lambda content: set(_items(content)),
    "f": lambda content: frozenset(_items(content)),
    "d": lambda content: {decode(key): decode(item) for key, item in content},
    "i": _integer,
    "x": _not_finite,
    "c": _complex,
    "b": lambda content: base64.b64decode(content, validate=True),
    "a": lambda content: bytearray(base64.b64decode(content, validate=True)),
    "q": _fraction,
    "m": _decimal,
    "z": _numpy_scalar,
    "n": _numpy_array,
    "y": _of_subclass,
    "o": lambda content: Opaque(str(content)[:200]),
}
