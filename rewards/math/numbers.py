"""Numbers: exactly, as rationals, where that is possible, else complex to fifty digits; and arithmetic with them.

All of it is bounded: what would take unreasonably long is `TooBigError` before it is computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from zlib import crc32

import mpmath  # type: ignore[import-untyped]

MAX_BITS = 4096
"""Size of the largest integer that is ever computed; beyond it an expression is `TooBigError`."""
MAX_FACTORIAL = 400
MAX_ARGUMENT = 10**5
"""Size of exponents and of arguments of transcendental functions, so that no result has millions of digits."""
SAMPLES = 3
"""Sets of values that variables take, one after another: all positive first, then of both signs."""

MP = mpmath.mp.clone()
"""This module's own arithmetic, so that its precision is nobody else's."""
MP.dps = 50


class TooBigError(ValueError):
    """The expression is an exponent tower, a huge factorial or the like, made to keep a computer busy."""


class UnknownError(ValueError):
    """This has no value, or none that is known here: the logarithm of zero, the factorial of a half."""


@dataclass(frozen=True, slots=True)
class Number:
    """A value: `exact` if rational, else `inexact` to fifty digits; `variables` if it depends on any."""

    exact: Fraction | None = None
    inexact: Any = None
    variables: bool = False

    @property
    def about(self) -> Any:
        """The value as a complex number of `MP`."""
        return self.inexact if self.exact is None else MP.mpc(self.exact.numerator) / self.exact.denominator


def rational(value: Fraction | int) -> Number:
    """A number known exactly."""
    return Number(Fraction(value))


def inexact(value: Any, variables: bool) -> Number:
    """A number known to fifty digits.

    Raises:
        UnknownError: it is infinite, or not a number.
    """
    value = MP.mpc(value)
    if not (MP.isfinite(value.real) and MP.isfinite(value.imag)):
        raise UnknownError
    return Number(None, value, variables)


_SIMPLE = re.compile(
    r"([+-]?)\s*(?:(\d{1,40})(?:\.(\d{1,40}))?|\.(\d{1,40})|\\[dt]?frac\{(-?\d{1,40})\}\{(\d{1,40})\}|(\d{1,40})/(\d{1,40}))"
)


def simple(text: str) -> Fraction | None:
    r"""The value of a plain integer, decimal or fraction (`-3`, `0.50`, `1/2`, `\frac{1}{2}`), read at top speed."""
    found = _SIMPLE.fullmatch(text)
    if found is None:
        return None
    sign, whole, part, only_part, top, bottom, numerator, denominator = found.groups()
    if top or numerator:
        below = int(bottom or denominator)
        if below == 0:
            return None
        value = Fraction(int(top or numerator), below)
    elif only_part or part:
        digits = only_part or part
        value = Fraction(int((whole or "") + digits), 10 ** len(digits))
    else:
        value = Fraction(int(whole))
    return -value if sign == "-" else value


_DECIMAL = re.compile(r"(\d+)(?:\.(\d*)(?:\((\d+)\))?)?(?:e([+-]?\d+))?")


def literal(text: str) -> Fraction | None:
    """The value of a number token: `12`, `0.5`, `0.1(6)`, `1.5e3`, `101_2`."""
    if "_" in text:
        digits, _, base = text.partition("_")
        try:
            return Fraction(int(digits, int(base)))
        except ValueError:
            return None
    found = _DECIMAL.fullmatch(text)
    if found is None:
        return None
    whole, part, period, power = found.groups()
    part = part or ""
    value = Fraction(int(whole + part), 10 ** len(part))
    if period:
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(part))
    if power:
        if abs(int(power)) > MAX_BITS // 4:
            raise TooBigError("a power of ten too large to be meant")
        value *= Fraction(10) ** int(power)
    return value


def power(base: Number, exponent: Number) -> Number:
    """base ** exponent.

    Raises:
        TooBigError: the result would have more than `MAX_BITS` bits, or the exponent passes `MAX_ARGUMENT`.
    """
    variables = base.variables or exponent.variables
    if base.exact is not None and exponent.exact is not None:
        if exponent.exact.denominator == 1:
            size = max(base.exact.numerator.bit_length(), base.exact.denominator.bit_length())
            if abs(exponent.exact) > MAX_ARGUMENT or (size > 1 and size * abs(exponent.exact) > MAX_BITS):
                raise TooBigError("a power too large to be meant")
            return rational(base.exact ** int(exponent.exact))
        root = _root(base.exact, exponent.exact.denominator)
        if root is not None:
            return power(rational(root), rational(exponent.exact.numerator))
    if abs(exponent.about) > MAX_ARGUMENT:
        raise TooBigError("an exponent too large to be meant")
    if base.about == 0:
        raise UnknownError
    if abs(exponent.about * MP.log(base.about)) > MAX_ARGUMENT:
        raise TooBigError("a power too large to be meant")
    return inexact(base.about**exponent.about, variables)


def _root(value: Fraction, degree: int) -> Fraction | None:
    """The real root of a rational, if it is rational."""
    if degree > 64 or (value < 0 and degree % 2 == 0):
        return None
    top, bottom = _integer_root(abs(value.numerator), degree), _integer_root(value.denominator, degree)
    if top is None or bottom is None:
        return None
    return Fraction(top if value >= 0 else -top, bottom)


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    else:
        low, high = 0, 1 << (value.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
        root = low
    return root if root**degree == value else None


def stand_in(name: str, sample: int) -> Number:
    """A fixed number for a variable: positive in the first sample, so that roots and logarithms are real there."""
    if name == "i":
        return Number(None, MP.mpc(0, 1))
    if name == "e":
        return Number(None, MP.mpc(MP.e))
    seed = crc32(f"{name}/{sample}".encode())
    value = (1 + MP.mpf(seed) / 2**32) * (-1 if sample and seed % 2 else 1)
    return Number(None, MP.mpc(value + MP.sqrt(2) / 7), True)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    r"\sin": MP.sin,
    r"\cos": MP.cos,
    r"\tan": MP.tan,
    r"\cot": MP.cot,
    r"\sec": MP.sec,
    r"\csc": MP.csc,
    r"\ln": MP.log,
    r"\exp": MP.exp,
    r"\arcsin": MP.asin,
    r"\arccos": MP.acos,
    r"\arctan": MP.atan,
}


def apply(function: Callable[[Any], Any], argument: Number) -> Number:
    """A transcendental function of a number.

    Raises:
        TooBigError: the argument passes `MAX_ARGUMENT`.
        UnknownError: the function has a pole there.
    """
    if abs(argument.about) > MAX_ARGUMENT and function is not MP.log:
        raise TooBigError("an argument too large to be meant")
    if argument.about == 0 and function in (MP.log, MP.cot, MP.csc):
        raise UnknownError
    return inexact(function(argument.about), argument.variables)


def combine(a: Number, b: Number, operation: Callable[[Any, Any], Any]) -> Number:
    """The result of a rational operation: exact if both numbers are.

    Raises:
        TooBigError: it would have more than four times `MAX_BITS` bits.
    """
    variables = a.variables or b.variables
    if a.exact is not None and b.exact is not None:
        exact = operation(a.exact, b.exact)
        if max(exact.numerator.bit_length(), exact.denominator.bit_length()) > 4 * MAX_BITS:
            raise TooBigError("a number too large to be meant")
        return rational(exact)
    return inexact(operation(a.about, b.about), variables)


def times(a: Any, b: Any) -> Any:
    """The product, as an operation for `combine`."""
    return a * b


def divide(a: Number, b: Number) -> Number:
    """The quotient.

    Raises:
        ZeroDivisionError: `b` is zero.
    """
    return combine(a, b, lambda x, y: x / y)


def factorial(value: Number) -> Number:
    """The factorial.

    Raises:
        UnknownError: it is not that of a natural number.
        TooBigError: the number passes `MAX_FACTORIAL`.
    """
    if value.exact is None or value.exact.denominator != 1 or value.exact < 0:
        raise UnknownError
    if value.exact > MAX_FACTORIAL:
        raise TooBigError("a factorial too large to be meant")
    return rational(math.factorial(int(value.exact)))


def binomial(n: Number, k: Number) -> Number:
    """The binomial coefficient.

    Raises:
        UnknownError: `n` or `k` is no natural number.
        TooBigError: `n` passes `MAX_BITS`.
    """
    if n.exact is None or k.exact is None or n.exact.denominator != 1 or k.exact.denominator != 1:
        raise UnknownError
    if n.exact < 0 or k.exact < 0:
        raise UnknownError
    if n.exact > MAX_BITS:
        raise TooBigError("a binomial coefficient too large to be meant")
    return rational(math.comb(int(n.exact), int(k.exact)))
