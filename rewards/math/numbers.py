"""Numbers as they are written and kept: exactly, as rationals, where that is possible, else to fifty digits or more."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import mpmath  # type: ignore[import-untyped]

MAX_BITS = 4096
"""Size of the largest integer that is ever computed; beyond it an expression is `TooBigError`."""
MAX_FACTORIAL = 400
MAX_BASE = 36
"""Digits and letters there are."""
MAX_ARGUMENT = 10**5
"""Size of exponents and of arguments of transcendental functions, so that no result has millions of digits."""
MP = mpmath.mp.clone()
"""This module's own arithmetic, so that its precision is nobody else's."""
MP.dps = 50


class TooBigError(ValueError):
    """The expression is an exponent tower, a huge factorial or the like, made to keep a computer busy."""


class UnknownError(ValueError):
    """This has no value, or none that can be computed here: the logarithm of zero, the factorial of a half."""


class OutsideError(UnknownError):
    """With these values of its variables the expression leaves the real numbers, or has no value."""


class Number(NamedTuple):
    """A value.

    Attributes:
        exact: the value, if it is rational.
        inexact: else the value as a number of mpmath, real or complex.
        variables: whether it depends on variables.
        size: binary magnitude of the largest number that went into it; what is lost when such numbers cancel.
        opaque: whether it stands for something that was not computed, as an integral: other values say nothing.
    """

    exact: Fraction | None = None
    inexact: Any = None
    variables: bool = False
    size: int = 0
    opaque: bool = False

    @property
    def about(self) -> Any:
        """The value to fifty digits or more."""
        return self.inexact if self.exact is None else MP.mpf(self.exact.numerator) / self.exact.denominator


def rational(value: Fraction | int, variables: bool = False) -> Number:
    """A number known exactly."""
    value = value if isinstance(value, Fraction) else Fraction(value)
    return Number(value, None, variables, max(1, value.numerator.bit_length() - value.denominator.bit_length()))


_SIMPLE = re.compile(
    r"([+-]?)\s*(?:(\d{1,40})(?:\.(\d{1,40}))?|\.(\d{1,40})|\\[dt]?frac\{(-?\d{1,40})\}\{(\d{1,40})\}|(\d{1,40})/(\d{1,40}))"
)


@lru_cache(maxsize=4096)
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


@lru_cache(maxsize=2048)
def literal(text: str) -> Fraction | None:
    """The value of a number token: `12`, `0.5`, `0.1(6)`, `1.5e3`, `101_2`."""
    if "_" in text:
        digits, _, base = text.partition("_")
        if not base.isdigit() or not 2 <= int(base) <= MAX_BASE:
            return None
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
