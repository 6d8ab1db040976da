"""The operations that functions of the tiny world are composed of: conditions, maps, list operations, reductions.

Each is a phrase a person would use and the Python for it; `{k}` and `{j}` are constants drawn for the function. Common
ones come first: they are drawn more often.
"""

from typing import NamedTuple


class Operation(NamedTuple):
    """An operation on the numbers or words of a list.

    key: its name in a signature.
    phrases: how an instruction says it (a condition as an attribute, "greater than {k}"; a map or list operation as an
        imperative, "double them"; a reduction as a noun, "the sum").
    code: a Python expression in x (the element; for list operations and reductions, the list).
    low, high: range of the constant {k}; {j} is drawn above {k}.
    """

    key: str
    phrases: tuple[str, ...]
    code: str
    low: int = 0
    high: int = 0


NUMBER_CONDITIONS = [
    Operation("even", ("that are even",), "x % 2 == 0"),
    Operation("above", ("greater than {k}", "above {k}", "larger than {k}"), "x > {k}", -5, 12),
    Operation("odd", ("that are odd",), "x % 2 == 1"),
    Operation("below", ("less than {k}", "below {k}", "smaller than {k}"), "x < {k}", -3, 15),
    Operation("positive", ("that are positive", "above zero"), "x > 0"),
    Operation("divisible", ("divisible by {k}", "that are multiples of {k}"), "x % {k} == 0", 3, 9),
    Operation("negative", ("that are negative", "below zero"), "x < 0"),
    Operation("at_least", ("at least {k}", "not below {k}"), "x >= {k}", -5, 12),
    Operation("at_most", ("at most {k}", "not above {k}"), "x <= {k}", -3, 15),
    Operation("not_divisible", ("not divisible by {k}", "that are no multiples of {k}"), "x % {k} != 0", 3, 9),
    Operation("not_equal", ("different from {k}", "not equal to {k}"), "x != {k}", -3, 9),
    Operation("between", ("between {k} and {j}", "from {k} to {j}"), "{k} <= x <= {j}", -5, 8),
    Operation("far", ("farther than {k} from zero", "of absolute value above {k}"), "abs(x) > {k}", 2, 9),
    Operation("last_digit", ("ending in {k}", "with {k} as last digit"), "abs(x) % 10 == {k}", 0, 9),
    Operation("outside", ("below {k} or above {j}", "outside {k} to {j}"), "x < {k} or x > {j}", -5, 8),
    Operation("square", ("that are perfect squares", "that are squares"), "x >= 0 and int(x ** 0.5) ** 2 == x"),
]

NUMBER_MAPS = [
    Operation("double", ("double them", "multiply them by 2"), "2 * x"),
    Operation("square", ("square them", "replace them by their squares"), "x * x"),
    Operation("add", ("add {k} to them", "increase them by {k}"), "x + {k}", 1, 9),
    Operation("subtract", ("subtract {k} from them", "decrease them by {k}"), "x - {k}", 1, 9),
    Operation("times", ("multiply them by {k}", "scale them by {k}"), "{k} * x", 3, 9),
    Operation("absolute", ("take their absolute values", "drop their signs"), "abs(x)"),
    Operation("negate", ("negate them", "flip their signs"), "-x"),
    Operation("modulo", ("take them modulo {k}", "replace them by their remainders modulo {k}"), "x % {k}", 3, 9),
    Operation("quotient", ("divide them by {k} rounding down", "floor divide them by {k}"), "x // {k}", 2, 9),
    Operation("distance", ("take their distances from {k}",), "abs(x - {k})", 1, 9),
    Operation("from", ("subtract them from {k}",), "{k} - x", 1, 20),
    Operation("cap", ("cap them at {k}", "limit them to at most {k}"), "min(x, {k})", 2, 12),
    Operation("floor", ("raise them to at least {k}",), "max(x, {k})", -2, 9),
    Operation("cube", ("cube them",), "x ** 3"),
    Operation("scale_add", ("multiply them by {k} and add {j}",), "{k} * x + {j}", 2, 5),
]

NUMBER_LISTS = [
    Operation("ascending", ("sort them", "put them in ascending order"), "sorted(x)"),
    Operation("reverse", ("reverse their order", "reverse the list"), "x[::-1]"),
    Operation("distinct", ("remove duplicates", "keep one of each"), "list(dict.fromkeys(x))"),
    Operation("first", ("keep the first {k}",), "x[:{k}]", 2, 5),
    Operation("descending", ("sort them in descending order",), "sorted(x, reverse=True)"),
    Operation("last", ("keep the last {k}",), "x[-{k}:]", 2, 5),
    Operation("skip", ("skip the first {k}", "drop the first {k}"), "x[{k}:]", 1, 3),
    Operation("every_other", ("keep every second one",), "x[::2]"),
    Operation("differences", ("take the differences of neighbours",), "[b - a for a, b in zip(x, x[1:])]"),
]

NUMBER_REDUCTIONS = [
    Operation("sum", ("the sum", "the total"), "sum(x)"),
    Operation("list", ("the list",), "x"),
    Operation("count", ("the count", "how many there are"), "len(x)"),
    Operation("largest", ("the largest", "the maximum"), "max(x, default=0)"),
    Operation("smallest", ("the smallest", "the minimum"), "min(x, default=0)"),
    Operation("sum_of_squares", ("the sum of squares",), "sum(a * a for a in x)"),
    Operation("count_distinct", ("the number of distinct ones",), "len(set(x))"),
    Operation("range", ("the spread",), "max(x, default=0) - min(x, default=0)"),
    Operation("largest_two", ("the sum of the largest two",), "sum(sorted(x)[-2:])"),
    Operation("parity", ("whether the sum is even",), "sum(x) % 2 == 0"),
    Operation("alternating", ("the alternating sum",), "sum(x[::2]) - sum(x[1::2])"),
]

WORD_CONDITIONS = [
    Operation("longer", ("longer than {k} letters", "with more than {k} letters"), "len(x) > {k}", 2, 6),
    Operation("starts", ("starting with {c}", "that begin with {c}"), 'x.startswith("{c}")'),
    Operation("contains", ("containing {c}", "with a {c} in them"), '"{c}" in x'),
    Operation("shorter", ("shorter than {k} letters", "with fewer than {k} letters"), "len(x) < {k}", 4, 8),
    Operation("ends", ("ending with {c}",), 'x.endswith("{c}")'),
    Operation("exactly", ("of exactly {k} letters",), "len(x) == {k}", 3, 7),
    Operation("lacks", ("without {c}", "not containing {c}"), '"{c}" not in x'),
    Operation("even_length", ("of even length",), "len(x) % 2 == 0"),
]

WORD_MAPS = [
    Operation("upper", ("make them upper case", "write them in capitals"), "x.upper()"),
    Operation("reversed", ("reverse each of them", "spell them backwards"), "x[::-1]"),
    Operation("capitalize", ("capitalize them",), "x.capitalize()"),
    Operation("length", ("take their lengths",), "len(x)"),
    Operation("prefix", ("keep their first {k} letters",), "x[:{k}]", 2, 4),
    Operation("suffix", ("keep their last {k} letters",), "x[-{k}:]", 2, 4),
    Operation("count_letter", ("count the letter {c} in them",), 'x.count("{c}")'),
    Operation("replace", ("replace {c} by {e} in them",), 'x.replace("{c}", "{e}")'),
    Operation("remove", ("remove the letter {c} from them",), 'x.replace("{c}", "")'),
    Operation("repeat", ("write them {k} times",), "x * {k}", 2, 4),
]
NUMERIC_WORD_MAPS = {"length", "count_letter"}

WORD_LISTS = [
    Operation("alphabetical", ("sort them", "put them in alphabetical order"), "sorted(x)"),
    Operation("reverse", ("reverse their order", "reverse the list"), "x[::-1]"),
    Operation("distinct", ("remove duplicates", "keep one of each"), "list(dict.fromkeys(x))"),
    Operation("first", ("keep the first {k}",), "x[:{k}]", 2, 5),
    Operation("by_length", ("sort them by length",), "sorted(x, key=len)"),
    Operation("last", ("keep the last {k}",), "x[-{k}:]", 2, 5),
]

WORD_REDUCTIONS = [
    Operation("joined", ("them joined by spaces", "one string with spaces between"), '" ".join(x)'),
    Operation("list", ("the list",), "x"),
    Operation("count", ("the count", "how many there are"), "len(x)"),
    Operation("letters", ("their total length",), "sum(len(w) for w in x)"),
    Operation("dashed", ("them joined by dashes",), '"-".join(x)'),
    Operation("longest", ("the longest",), 'max(x, key=len, default="")'),
    Operation("joined_tight", ("them joined without spaces",), '"".join(x)'),
]

INPUT_WORDS = [
    "sun", "moon", "tree", "river", "cat", "apple", "stone", "a", "bird", "window", "to", "red", "garden", "sea",
    "level", "night", "oak", "sand", "rain", "letter", "noon", "east", "area", "toast",
]  # fmt: skip
LETTERS = "aeistnor"

# How a phrase about the elements of a list speaks of one number, in this order.
SINGULAR = {
    "is ending": "ends",
    "is with": "has",
    "that are squares": "a square",
    "that are ": "",
    "them": "it",
    "their": "its",
    "absolute values": "absolute value",
    "signs": "sign",
    "distances": "distance",
    "remainders": "remainder",
    "no multiples": "no multiple",
    "multiples": "a multiple",
    "perfect squares": "a perfect square",
    "squares": "square",
}
