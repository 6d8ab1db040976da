r"""Symbolic and arithmetic problems in MATH500's format: LaTeX in, worked lines and `\boxed{...}` out.

Thirteen kinds, common ones first: expressions, linear equations, like terms, remainders, evaluation, fractions,
expansion, derivatives, divisors, sequences, systems of equations, roots and inverses modulo a prime.
"""

import math
import random
from collections.abc import Callable

from eval.prompts import prompt
from pipelines.world.problems import Problem

# (expression asked about, problem, worked lines, answer)
Worked = tuple[str, str, list[str], str]


def signed(number: int) -> str:
    """Writes a number as the next term of a sum: `+3`, `-3`, and nothing for 0."""
    return f"{number:+d}" if number else ""


def linear(a: int, b: int, variable: str = "x") -> str:
    """Writes a*x + b."""
    return f"{ {1: '', -1: '-'}.get(a, a) }{variable}{signed(b)}" if a else str(b)


def polynomial(coefficients: list[int], variable: str = "x") -> str:
    """Writes a polynomial from its coefficients, highest power first."""
    terms = []
    for power, c in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if c == 0:
            continue
        factor = variable if power == 1 else f"{variable}^{power}" if power else ""
        number = "" if factor and abs(c) == 1 else str(abs(c))
        terms.append(("-" if c < 0 else "+") + number + factor)
    return "".join(terms).removeprefix("+") or "0"


def fraction(numerator: int, denominator: int) -> str:
    r"""Writes a fraction in lowest terms, `-\frac{1}{2}` or a whole number."""
    divisor = math.gcd(numerator, denominator)
    numerator, denominator = numerator // divisor, denominator // divisor
    if denominator == 1:
        return str(numerator)
    return f"{'-' if numerator < 0 else ''}\\frac{{{abs(numerator)}}}{{{denominator}}}"


def _expression(rng: random.Random) -> Worked:
    a, b, c, d = (rng.randint(2, 6) for _ in range(4))
    kind = rng.randrange(4)
    if kind == 0:
        text, lines, value = f"{a}({b}+{c})-{d}", [f"{b}+{c}={b + c}", f"{a}*{b + c}={a * (b + c)}"], a * (b + c) - d
        lines.append(f"{a * (b + c)}-{d}={value}")
    elif kind == 1:
        text, lines, value = f"{a} \\cdot {b}+{c} \\cdot {d}", [f"{a}*{b}={a * b}", f"{c}*{d}={c * d}"], a * b + c * d
        lines.append(f"{a * b}+{c * d}={value}")
    elif kind == 2:
        text, lines, value = f"{a} \\cdot {b}+{c}", [f"{a}*{b}={a * b}"], a * b + c
        lines.append(f"{a * b}+{c}={value}")
    else:
        text, lines, value = f"{a} \\cdot {b}-{c}", [f"{a}*{b}={a * b}"], a * b - c
        lines.append(f"{a * b}-{c}={value}")
    ask = rng.choice(["Compute ${}$.", "Evaluate ${}$.", "What is ${}$?"])
    return text, ask.format(text), lines, str(value)


def _equation(rng: random.Random) -> Worked:
    a, x, b = rng.randint(2, 6), rng.randint(1, 9), rng.choice([-1, 1, 1]) * rng.randint(1, 9)
    right = a * x + b
    text = f"{linear(a, b)}={right}"
    lines = [f"{linear(a, 0)}={right}{signed(-b)}={right - b}", f"x={right - b}/{a}={x}"]
    return text, rng.choice(["Solve for $x$: ${}$.", "Find $x$ if ${}$."]).format(text), lines, str(x)


def _fractions(rng: random.Random) -> Worked:
    b, d = rng.randint(2, 8), rng.randint(2, 8)
    a, c, sign = rng.randint(1, b - 1), rng.randint(1, d - 1), rng.choice("+-*")
    operator = " \\cdot " if sign == "*" else sign
    text = f"\\frac{{{a}}}{{{b}}}{operator}\\frac{{{c}}}{{{d}}}"
    if sign == "*":
        top, bottom = a * c, b * d
        lines = [f"{a}*{c}={top}", f"{b}*{d}={bottom}"]
    else:
        bottom = math.lcm(b, d)
        left, right = a * bottom // b, c * bottom // d
        top = left + right if sign == "+" else left - right
        lines = [f"{left}/{bottom}{sign}{right}/{bottom}={top}/{bottom}"]
    answer = fraction(top, bottom)
    ask = rng.choice(["Compute ${}$.", "Write ${}$ as a common fraction.", "Simplify ${}$."])
    return text, ask.format(text), lines, answer


def _expansion(rng: random.Random) -> Worked:
    a, b, c = rng.choice([1, 1, 1, 2, 3]), *(rng.choice([-1, 1, 1]) * rng.randint(1, 9) for _ in range(2))
    text = f"({linear(a, b)})({linear(1, c)})"
    lines = [f"{a * c}{signed(b)}={a * c + b}", f"{b}*({c})={b * c}" if c < 0 else f"{b}*{c}={b * c}"]
    answer = polynomial([a, a * c + b, b * c])
    return text, rng.choice(["Expand ${}$.", "Expand the product ${}$."]).format(text), lines, answer


def _evaluation(rng: random.Random) -> Worked:
    a, b, c, x = rng.randint(1, 4), rng.randint(-3, 9), rng.randint(-9, 9), rng.randint(2, 5)
    text = polynomial([a, b, c])
    lines = [f"{x}^2={x * x}", f"{a}*{x * x}={a * x * x}"]
    value = a * x * x
    for term in ([b * x] if b else []) + ([c] if c else []):
        lines.append(f"{value}{signed(term)}={value + term}")
        value += term
    ask = rng.choice(["If $f(x)={}$, what is $f({x})$?", "Evaluate ${}$ at $x={x}$."])
    return f"{text} at {x}", ask.format(text, x=x), lines, str(value)


def _remainder(rng: random.Random) -> Worked:
    b = rng.randint(3, 9)
    a, c = rng.randint(b + 1, 5 * b), rng.choice([0, 0, rng.randint(2, 9)])
    total = a + c
    lines = [f"{a}+{c}={total}"] if c else []
    lines += [f"{b}*{total // b}={total // b * b}", f"{total}-{total // b * b}={total % b}"]
    text = f"{a}+{c}" if c else f"{a}"
    ask = rng.choice(["What is the remainder when ${}$ is divided by ${b}$?", "Find ${} \\bmod {b}$."])
    return f"{text} mod {b}", ask.format(text, b=b), lines, str(total % b)


def _like_terms(rng: random.Random) -> Worked:
    a, c, b, d = (rng.choice([-1, 1, 1, 1, 1, 1]) * rng.randint(1, 9) for _ in range(4))
    if a + c == 0:
        c += 1 if c != -1 else 2
    text = f"{linear(a, b)}{'+' if c > 0 else ''}{linear(c, d)}"
    lines = [f"{a}{signed(c)}={a + c}", f"{b}{signed(d)}={b + d}"]
    answer = linear(a + c, b + d)
    return text, rng.choice(["Simplify ${}$.", "Combine like terms in ${}$."]).format(text), lines, answer


def _divisors(rng: random.Random) -> Worked:
    g, a, b = rng.randint(2, 9), rng.randint(1, 6), rng.randint(1, 6)
    while math.gcd(a, b) != 1 or a == b:
        a, b = rng.randint(1, 6), rng.randint(1, 6)
    x, y = g * a, g * b
    lines = [f"{x}={g}*{a}", f"{y}={g}*{b}"]
    if rng.random() < 0.5:
        return f"gcd {x} {y}", f"Find the greatest common divisor of ${x}$ and ${y}$.", lines, str(g)
    lines.append(f"{g}*{a}*{b}={g * a}*{b}={g * a * b}")
    return f"lcm {x} {y}", f"Find the least common multiple of ${x}$ and ${y}$.", lines, str(g * a * b)


def _sequence(rng: random.Random) -> Worked:
    a, step, n = rng.randint(1, 20), rng.randint(2, 9), rng.randint(5, 12)
    text = ", ".join(str(a + i * step) for i in range(3))
    lines = [f"{a + step}-{a}={step}", f"{n - 1}*{step}={(n - 1) * step}", f"{a}+{(n - 1) * step}={a + (n - 1) * step}"]
    ask = rng.choice(["What is term number ${n}$ of the arithmetic sequence ${}, \\dots$?"])
    return f"{text} at {n}", ask.format(text, n=n), lines, str(a + (n - 1) * step)


def _derivative(rng: random.Random) -> Worked:
    a, b, c, d = rng.randint(1, 5), rng.randint(-5, 6), rng.randint(-9, 9), rng.randint(-9, 9)
    text = polynomial([a, b, c, d])
    lines = [f"3*{a}={3 * a}"] + ([f"2*{b}={2 * b}" if b > 0 else f"2*({b})={2 * b}"] if b else [])
    answer = polynomial([3 * a, 2 * b, c])
    return text, rng.choice(["Differentiate ${}$.", "Find the derivative of ${}$."]).format(text), lines, answer


def _roots(rng: random.Random) -> Worked:
    p, q = rng.randint(-9, 9), rng.randint(-9, 9)
    while p == q or 0 in (p, q):
        p, q = rng.randint(-9, 9), rng.randint(-9, 9)
    text = f"{polynomial([1, -(p + q), p * q])}=0"
    largest = rng.random() < 0.5
    lines = [f"({linear(1, -max(p, q))})({linear(1, -min(p, q))})=0"]
    ask = f"Find the {'larger' if largest else 'smaller'} root of ${text}$."
    return f"{largest} {text}", ask, lines, str(max(p, q) if largest else min(p, q))


def _system(rng: random.Random) -> Worked:
    x, y = rng.randint(1, 15), rng.randint(1, 15)
    wanted = rng.choice("xy")
    text = f"x+y={x + y}$ and $x-y={x - y}"
    sign, double = ("+", 2 * x) if wanted == "x" else ("-", 2 * y)
    other = f"({x - y})" if x < y else str(x - y)
    lines = [f"2{wanted}={x + y}{sign}{other}={double}", f"{wanted}={double}/2={double // 2}"]
    return f"{text} {wanted}", f"If ${text}$, what is ${wanted}$?", lines, str(double // 2)


def _inverse(rng: random.Random) -> Worked:
    prime = rng.choice([5, 7, 11, 13])
    a = rng.randint(2, prime - 1)
    b = rng.randint(1, prime - 1)
    x = pow(a, -1, prime) * b % prime
    lines = [f"{a}*{x}={a * x}", f"{a * x}-{a * x - b}={b}"]
    text = f"{a}x \\equiv {b} \\pmod{{{prime}}}"
    return text, f"Find the smallest positive $x$ with ${text}$.", lines, str(x)


KINDS: list[Callable[[random.Random], Worked]] = [
    _expression,
    _equation,
    _like_terms,
    _remainder,
    _evaluation,
    _fractions,
    _expansion,
    _derivative,
    _divisors,
    _sequence,
    _system,
    _roots,
    _inverse,
]


def sample_symbolic_problem(rng: random.Random, wanted: Callable[[str], bool]) -> Problem | None:
    """Draws one symbolic problem."""
    kind = rng.choice(KINDS[:4]) if rng.random() < 0.8 else rng.choice(KINDS[4:])
    expression, problem, lines, answer = kind(rng)
    signature = f"symbolic {kind.__name__.removeprefix('_')} {expression}"
    if not wanted(signature):
        return None
    item = {"problem": problem, "answer": answer}
    return Problem(
        task="tiny_math500",
        signature=signature,
        prompt=prompt("tiny_math500", item),
        response="\n".join([*lines, f"\\boxed{{{answer}}}"]),
        item=item,
        answer=answer,
    )
