"""Arithmetic with numbers that are exact where they can be, to as many digits as are asked for.

All of it is bounded: what would take unreasonably long is `TooBigError` before it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath  # type: ignore[import-untyped]

from rewards.math.notation import words
from rewards.math.numbers import (
    MAX_ARGUMENT,
    MAX_BITS,
    MAX_FACTORIAL,
    Number,
    OutsideError,
    TooBigError,
    UnknownError,
    rational,
)


class Arithmetic:
    """Operations on numbers.

    Args:
        digits: decimal digits of what is not exact.
        real: whether variables are real: then a value that depends on them and is not, such as the square root of a
            negative one, is `OutsideError`. Constants may be complex in any case.
    """

    def __init__(self, digits: int, real: bool) -> None:
        self.mp, self.real = mpmath.mp.clone(), real
        self.mp.dps = digits
        mp = self.mp
        self._functions: dict[str, Callable[[Any], Any]] = {
            rf"\{name}": getattr(mp, ours)
            for name, ours in (
                *((n, n) for n in words("sin cos tan cot sec csc exp sinh cosh tanh coth")),
                *((f"arc{n}", f"a{n}") for n in words("sin cos tan cot sec csc sinh cosh tanh")),
                ("ln", "log"),
                ("lg", "log10"),
                ("sgn", "sign"),
                ("cis", "expj"),
            )
        }

    def value(self, number: Number) -> Any:
        """A number in this arithmetic's precision."""
        if number.exact is None:
            return number.inexact
        return self.mp.mpf(number.exact.numerator) / number.exact.denominator

    def inexact(self, value: Any, *parents: Number) -> Number:
        """What was computed of other numbers.

        Raises:
            UnknownError: it is infinite, or not a number.
            OutsideError: it is not real, although it depends on real variables.
        """
        if not self.mp.isfinite(value):
            raise UnknownError
        variables = any(parent.variables for parent in parents)
        if isinstance(value, self.mp.mpc):
            if value.imag == 0:
                value = value.real
            elif self.real and variables:
                raise OutsideError
        size = self.mp.mag(value) if value else 0
        opaque = any(parent.opaque for parent in parents)
        return Number(None, value, variables, max([size, 1, *(parent.size for parent in parents)]), opaque)

    def constant(self, value: Any) -> Number:
        """A constant that is not rational."""
        return Number(None, value, False, 2)

    def _too_big(self, what: str, *parents: Number) -> UnknownError | TooBigError:
        """Too large to be meant; of variables, other values may do."""
        return OutsideError() if any(p.variables for p in parents) else TooBigError(f"{what} too large to be meant")

    def _exactly(self, value: Fraction, *parents: Number) -> Number | None:
        """An exact result, unless it has grown out of hand."""
        variables = any(parent.variables for parent in parents)
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * MAX_BITS:
            if variables:
                return None
            raise TooBigError("a number too large to be meant")
        size = max(1, value.numerator.bit_length() - value.denominator.bit_length(), *(p.size for p in parents))
        return Number(value, None, variables, size, any(p.opaque for p in parents))

    def add(self, a: Number, b: Number) -> Number:
        """The sum."""
        if a.exact is not None and b.exact is not None:
            total = self._exactly(a.exact + b.exact, a, b)
            if total is not None:
                return total
        return self.inexact(self.value(a) + self.value(b), a, b)

    def times(self, a: Number, b: Number) -> Number:
        """The product."""
        if a.exact is not None and b.exact is not None:
            product = self._exactly(a.exact * b.exact, a, b)
            if product is not None:
                return product
        return self.inexact(self.value(a) * self.value(b), a, b)

    def inverse(self, a: Number) -> Number:
        """One over it.

        Raises:
            ZeroDivisionError: it is zero.
            OutsideError: it is zero for these values of the variables.
        """
        if a.exact is not None:
            if a.exact == 0 and a.variables:
                raise OutsideError
            return Number(1 / a.exact, None, a.variables, a.size, a.opaque)
        if abs(a.inexact) < self.mp.mpf(2) ** (a.size - self.mp.prec + 8):
            raise OutsideError if a.variables else ZeroDivisionError
        return self.inexact(1 / a.inexact, a)

    def negative(self, a: Number) -> Number:
        """The number with the other sign."""
        exact = None if a.exact is None else -a.exact
        return Number(exact, None if a.exact is not None else -a.inexact, a.variables, a.size, a.opaque)

    def absolute(self, a: Number) -> Number:
        """The absolute value."""
        if a.exact is not None:
            return Number(abs(a.exact), None, a.variables, a.size, a.opaque)
        return self.inexact(abs(a.inexact), a)

    def power(self, base: Number, exponent: Number) -> Number:
        """base ** exponent; of a negative base the real root, where the exponent's denominator is odd.

        Raises:
            TooBigError: the result would have more than `MAX_BITS` bits, or the exponent passes `MAX_ARGUMENT`.
        """
        of = exponent.exact
        if base.exact is not None and of is not None:
            found = self._rational_power(base, base.exact, exponent, of)
            if found is not None:
                return found
        b, e = self.value(base), self.value(exponent)
        if abs(e) > MAX_ARGUMENT:
            raise self._too_big("an exponent", base, exponent)
        if b == 0:
            if of is not None and of > 0:
                return Number(Fraction(0), None, base.variables, base.size, base.opaque)
            raise UnknownError
        if abs(e * self.mp.log(b)) > MAX_ARGUMENT:
            raise self._too_big("a power", base, exponent)
        if of is not None and of.denominator == 1:
            return self.inexact(b ** int(of), base)
        if of is not None and of.denominator % 2 and isinstance(b, self.mp.mpf) and b < 0:
            return self.inexact((-1) ** (of.numerator % 2) * (-b) ** e, base, exponent)
        return self.inexact(b**e, base, exponent)

    def _rational_power(self, base: Number, b: Fraction, exponent: Number, e: Fraction) -> Number | None:
        if e.denominator == 1:
            size = max(b.numerator.bit_length(), b.denominator.bit_length())
            too_large = abs(e) > MAX_ARGUMENT or (size > 1 and size * abs(e) > MAX_BITS)
            if too_large and not (base.variables or exponent.variables):
                raise TooBigError("a power too large to be meant")
            if too_large:
                return None
            if b == 0 and e < 0:
                raise OutsideError if base.variables else ZeroDivisionError
            return self._exactly(b ** int(e), base, exponent)
        found = _root(b, e.denominator)
        if found is None:
            return None
        return self.power(
            Number(found, None, base.variables, base.size, base.opaque), rational(e.numerator, exponent.variables)
        )

    def root(self, inside: Number, degree: Number) -> Number:
        """The root of that degree."""
        return self.power(inside, self.inverse(degree))

    def apply(self, name: str, argument: Number) -> Number:
        """A function of one number.

        Raises:
            TooBigError: the argument passes `MAX_ARGUMENT`.
            UnknownError: the function has a pole there.
        """
        value = self.value(argument)
        if name not in (r"\ln", r"\lg") and abs(value) > MAX_ARGUMENT:
            raise self._too_big("an argument", argument)
        if value == 0 and name in (r"\ln", r"\lg", r"\cot", r"\csc", r"\coth", r"\arcsec", r"\arccsc"):
            raise UnknownError
        if name == r"\lg" and argument.exact is not None:
            return self.logarithm(rational(10), argument)
        return self.inexact(self._functions[name](value), argument)

    def logarithm(self, base: Number, argument: Number) -> Number:
        """The logarithm to a base, exact for powers of it."""
        below, above = self.apply(r"\ln", base), self.apply(r"\ln", argument)
        quotient = self.times(above, self.inverse(below))
        value = self.value(quotient)
        if base.exact and argument.exact and isinstance(value, self.mp.mpf) and abs(value) < MAX_BITS:
            nearest = int(self.mp.nint(value))
            bits = max(base.exact.numerator.bit_length(), base.exact.denominator.bit_length())
            if abs(nearest) * bits < 4 * MAX_BITS and base.exact**nearest == argument.exact:
                return rational(nearest, quotient.variables)
        return quotient

    def factorial(self, value: Number) -> Number:
        """The factorial.

        Raises:
            UnknownError: it is not that of a natural number.
            TooBigError: the number passes `MAX_FACTORIAL`.
        """
        n = natural(value)
        if n > MAX_FACTORIAL:
            raise self._too_big("a factorial", value)
        return rational(math.factorial(n), value.variables)

    def binomial(self, n: Number, k: Number, ordered: bool = False) -> Number:
        """The number of ways to choose k of n, in order or not.

        Raises:
            UnknownError: `n` or `k` is no natural number.
            TooBigError: `n` passes `MAX_BITS`.
        """
        of, chosen = natural(n), natural(k)
        if of > MAX_BITS:
            raise self._too_big("a binomial coefficient", n, k)
        return rational((math.perm if ordered else math.comb)(of, chosen), n.variables or k.variables)

    def rounded(self, number: Number, up: bool) -> Number:
        """The next whole number below, or above.

        Raises:
            UnknownError: the number is not real, or too close to a whole one to say.
        """
        if number.exact is not None:
            whole = math.ceil(number.exact) if up else math.floor(number.exact)
        else:
            value = number.inexact
            if not isinstance(value, self.mp.mpf) or abs(value - self.mp.nint(value)) < self.mp.mpf(10) ** -20:
                raise UnknownError
            whole = int((self.mp.ceil if up else self.mp.floor)(value))
        return rational(whole, number.variables)


@lru_cache(maxsize=64)
def arithmetic(digits: int, real: bool) -> Arithmetic:
    """The arithmetic of that precision; its numbers are values and may be kept."""
    return Arithmetic(digits, real)


def natural(number: Number) -> int:
    """A number as a natural one.

    Raises:
        UnknownError: it is none.
        OutsideError: it is none for these values of the variables.
    """
    if number.exact is None or number.exact.denominator != 1 or number.exact < 0:
        raise OutsideError if number.variables else UnknownError
    return int(number.exact)


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
