"""Values come back as they went in, and a hostile line gives plain data or an error."""

import collections
import enum
import fractions
import json
import math
from decimal import Decimal

import numpy as np
import pytest

from eval.sandbox import wire


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        10**400,
        -(2**20000),
        1.5,
        math.inf,
        -math.inf,
        "text",
        "\ud800\n",
        b"\0bytes",
        bytearray(b"x"),
        3 + 4j,
        complex(math.inf, 0),
        (),
        (1, (2, "x")),
        [1, [2.5, None], (3,)],
        {1, "x", (2, 3)},
        frozenset({1}),
        {},
        {"t": [1]},
        {1: {"a": (1,)}, (2, 3): None, 2.5: {4}},
        [math.inf, 1],
        [10**5000],
        fractions.Fraction(-3, 7),
        Decimal("1.50"),
        np.float64(1.5),
        np.int8(-3),
        np.bool_(True),
        np.complex128(1j),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_with_their_types(value):
    back = wire.loads(wire.dumps(value))
    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3), np.array(3), np.array(["a", "bc"]), np.array([{}, 1])])
def test_arrays_come_back(value):
    back = wire.loads(wire.dumps(value))
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert (back == value).all()


def test_no_number_is_no_number():
    assert math.isnan(wire.loads(wire.dumps([math.nan, {}]))[0])


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
        (enum.IntEnum("E", "one two").two, 2),
        ({1: 2}.keys(), {1}),
    ],
)
def test_a_derived_class_comes_back_as_another_class_of_equal_content(value, content):
    back = wire.loads(wire.dumps(value))
    assert back == content
    assert type(back) is not type(content)
    assert isinstance(back, type(content))


def test_a_class_that_equals_everything_comes_back_without_its_rules():
    class Yes(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert Yes(1) == 2
    assert wire.loads(wire.dumps(Yes(1))) != 2


def test_other_objects_come_back_as_their_type_alone():
    back = wire.loads(wire.dumps([object(), lambda: 1, range(3), iter([])]))
    assert all(type(item) is wire.Opaque for item in back)
    assert back[0] != wire.loads(wire.dumps(object()))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "{}",
        '{"t":[],"s":[]}',
        '{"unknown":1}',
        '{"t":1}',
        '{"s":[[1]]}',
        '{"d":[[1]]}',
        '{"d":[[[1],2]]}',
        '{"i":5}',
        '{"i":"' + "f" * (2**22 + 1) + '"}',
        '{"x":"1"}',
        '{"c":[1]}',
        '{"b":"?"}',
        '{"q":["1","0"]}',
        '{"q":["1","' + "1" * 10001 + '"]}',
        '{"m":"x"}',
        '{"z":["O",1]}',
        '{"n":["<f8",[1000000000],[1]]}',
        '{"n":["V8",[1],[1]]}',
        '{"n":["<f8",[1],1]}',
        '{"y":["os.system",{"o":"x"}]}',
        '{"y":[1,2]}',
        "1" * 5000,
        b"\xff",
    ],
    ids=lambda line: str(line)[:30],
)
def test_a_line_that_is_not_in_the_format_is_an_error(line):
    with pytest.raises(wire.WireError):
        wire.loads(line)


def test_a_deep_line_is_a_recursion_error_and_not_a_crash():
    with pytest.raises(RecursionError):
        wire.loads("[" * 10**5 + "]" * 10**5)


def test_the_format_is_json_that_any_reader_takes():
    def refuse(constant):
        raise AssertionError(constant)

    json.loads(wire.dumps([math.nan, math.inf, {1: -math.inf}]), parse_constant=refuse)


def test_zero_keeps_its_sign():
    assert math.copysign(1, wire.loads(wire.dumps(-0.0))) == -1
