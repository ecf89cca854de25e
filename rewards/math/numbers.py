r"""What an expression is worth: exactly, as a rational, where that is possible, else to fifty digits.

A recursive-descent reader of tokens that computes while it reads. It is no computer algebra: `\sqrt{12}` is
3.4641..., and variables are fixed arbitrary numbers, several sets of them. Two expressions that differ in one set are
different; two that agree to forty digits in all sets are equal for every purpose but a proof (Schwartz-Zippel).
What the reader does not know is `None`, never an error, and what would keep it busy is `TooBigError`.
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

from rewards.math.tokens import CLOSING, OPENING, Kind, Token, Tokens
from rewards.math.units import is_product

MAX_BITS = 4096
"""Size of the largest integer that is ever computed; beyond it an expression is `TooBigError`."""
MAX_FACTORIAL = 400
MAX_NESTING = 40
"""Brackets and fractions within one another; deeper ones are not read."""
MAX_ARGUMENT = 10**5
"""Size of exponents and of arguments of transcendental functions, so that no result has millions of digits."""
SAMPLES = 3
"""Sets of values that variables take, one after another: all positive first, then of both signs."""

MP = mpmath.mp.clone()
"""This module's own arithmetic, so that its precision is nobody else's."""
MP.dps = 50


class TooBigError(ValueError):
    """The expression is an exponent tower, a huge factorial or the like, made to keep a computer busy."""


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


class _Unknown(Exception):  # noqa: N818  control flow within this module
    """The reader met something that it does not know."""


def rational(value: Fraction | int) -> Number:
    """A number known exactly."""
    return Number(Fraction(value))


def _inexact(value: Any, variables: bool) -> Number:
    value = MP.mpc(value)
    if not (MP.isfinite(value.real) and MP.isfinite(value.imag)):
        raise _Unknown
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


def evaluate(expression: Tokens, sample: int = 0) -> Number | None:
    """The value of an expression, or `None` if it is not one that this reader knows.

    Args:
        expression: its tokens.
        sample: which set of values the variables take, below `SAMPLES`.

    Raises:
        TooBigError: computing it would take unreasonably long.
    """
    if not expression or len(expression) > 512:
        return None
    try:
        reader = _Reader(expression, sample)
        value = reader.sum()
        return value if reader.position == len(reader.tokens) else None
    except (_Unknown, ZeroDivisionError):
        return None


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
        raise _Unknown
    if abs(exponent.about * MP.log(base.about)) > MAX_ARGUMENT:
        raise TooBigError("a power too large to be meant")
    return _inexact(base.about**exponent.about, variables)


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


def _stand_in(name: str, sample: int) -> Number:
    """A fixed number for a variable: positive in the first sample, so that roots and logarithms are real there."""
    if name == "i":
        return Number(None, MP.mpc(0, 1))
    if name == "e":
        return Number(None, MP.mpc(MP.e))
    seed = crc32(f"{name}/{sample}".encode())
    value = (1 + MP.mpf(seed) / 2**32) * (-1 if sample and seed % 2 else 1)
    return Number(None, MP.mpc(value + MP.sqrt(2) / 7), True)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
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
_ENDS = CLOSING | {",", "&", "\\\\", "=", "<", ">", "<=", ">=", "|"}


class _Reader:
    """One reading of one expression; `position` is the next token."""

    def __init__(self, expression: Tokens, sample: int) -> None:
        self.tokens, self.sample, self.position, self.depth = _letters(expression), sample, 0, 0

    def peek(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise _Unknown
        self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.text in texts

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise _Unknown
        total = self.product()
        while self.at("+", "-"):
            minus, term = self.take().text == "-", self.product()
            total = _combine(total, term, (lambda a, b: a - b) if minus else (lambda a, b: a + b))
        self.depth -= 1
        return total

    def product(self) -> Number:
        total = self.signed()
        while (token := self.peek()) is not None and token.text not in _ENDS and token.text not in ("+", "-"):
            if token.text == "*":
                self.take()
                total = _combine(total, self.signed(), _times)
            elif token.text == "/":
                self.take()
                total = _divide(total, self.signed())
                if self.position < len(self.tokens) and self._continues():
                    raise _Unknown  # 1/2x may be a half of x or one over 2x
            else:
                before = self.tokens[self.position - 1]
                total = self._juxtaposed(total, before, token)
        return total

    def _continues(self) -> bool:
        """Whether a factor follows without any sign."""
        token = self.peek()
        return token is not None and token.text not in _ENDS and token.text not in ("+", "-", "*", "/", "^", "!")

    def _juxtaposed(self, total: Number, before: Token, token: Token) -> Number:
        """`2x` is a product, but `2 1/2` and `2\\frac{1}{2}` are mixed numbers."""
        if before.kind is Kind.NUMBER and token.text == r"\frac":
            part = self.powered()
            if part.exact is not None and total.exact is not None and before.text.isdigit() and 0 < part.exact < 1:
                return rational(total.exact + (part.exact if total.exact >= 0 else -part.exact))
            return _combine(total, part, _times)
        if token.kind is Kind.NUMBER and before.text not in ("!", ")", "}"):
            if not (before.kind is Kind.NUMBER and before.text.isdigit() and token.spaced and token.text.isdigit()):
                raise _Unknown
            top = int(self.take().text)
            if not self.at("/") or total.exact is None:
                raise _Unknown
            self.take()
            bottom = self.take()
            if not bottom.text.isdigit() or not 0 < top < int(bottom.text):
                raise _Unknown
            part = rational(Fraction(top, int(bottom.text)))
            return _combine(total, part, (lambda a, b: a + b) if total.exact >= 0 else (lambda a, b: a - b))
        return _combine(total, self.powered(), _times)

    def signed(self) -> Number:
        sign = 1
        while self.at("+", "-"):
            sign = -sign if self.take().text == "-" else sign
        value = self.powered()
        # A mixed number keeps its sign: -1\frac{1}{2} is -3/2.
        return value if sign == 1 else _combine(rational(-1), value, _times)

    def powered(self) -> Number:
        value = self.atom()
        while (token := self.peek()) is not None:
            if token.text == "^":
                value = power(value, self.exponent())
            elif token.text == "!":
                self.take()
                value = _factorial(value)
            elif token.text == "deg":
                self.take()
                value = _combine(value, Number(None, MP.mpc(MP.pi / 180)), _times)
            else:
                break
        return value

    def exponent(self) -> Number:
        """What stands behind `^`; towers are read from the top, as `2^3^2` means `2^9`."""
        self.take()
        value = self.group() if self.at("{") else self.signed()
        return power(value, self.exponent()) if self.at("^") else value

    def group(self) -> Number:
        """A bracketed expression."""
        opened = self.take().text
        if opened not in OPENING:
            raise _Unknown
        value = self.sum()
        if self.take().text not in _PARTNER[opened]:
            raise _Unknown
        if opened == r"\lfloor" or opened == r"\lceil":
            if value.exact is None:
                raise _Unknown
            return rational(math.floor(value.exact) if opened == r"\lfloor" else math.ceil(value.exact))
        return value

    def atom(self) -> Number:
        token = self.peek()
        if token is None:
            raise _Unknown
        if token.text in ("(", "[", "{", r"\lfloor", r"\lceil"):
            return self.group()
        self.take()
        if token.kind is Kind.NUMBER:
            value = literal(token.text)
            if value is None:
                raise _Unknown
            return rational(value)
        if token.kind is Kind.SYMBOL:
            return _stand_in(token.text, self.sample)
        if token.text == "|":
            inside = self.sum()
            if self.take().text != "|":
                raise _Unknown
            if inside.exact is not None:
                return rational(abs(inside.exact))
            return _inexact(abs(inside.about), inside.variables)
        return self.command(token.text)

    def command(self, name: str) -> Number:
        if name == r"\pi":
            return Number(None, MP.mpc(MP.pi))
        if name == r"\frac":
            return _divide(self.group(), self.group())
        if name == r"\binom":
            return _binomial(self.group(), self.group())
        if name == r"\sqrt":
            degree = self.group() if self.at("[") else rational(2)
            inside = self.group() if self.at("{", "(") else self.atom()
            if degree.exact is None or degree.exact.denominator != 1 or not 2 <= degree.exact <= 64:
                raise _Unknown
            if degree.exact % 2 and inside.about.real < 0 and inside.about.imag == 0:
                minus = power(_combine(rational(-1), inside, _times), rational(1 / degree.exact))
                return _combine(rational(-1), minus, _times)
            return power(inside, rational(1 / degree.exact))
        if name in _FUNCTIONS:
            exponent = None
            if self.at("^"):
                self.take()
                exponent = self.group()
                if exponent.exact is None or exponent.exact < 1:
                    raise _Unknown  # \sin^{-1} is an inverse, not a power
            argument = self.group() if self.at("(", "{") else self._argument()
            value = _apply(_FUNCTIONS[name], argument)
            return value if exponent is None else power(value, exponent)
        if name == r"\log":
            return self.logarithm()
        raise _Unknown

    def logarithm(self) -> Number:
        r"""`\log_2 8`. Without a base it may be any: then the base is one more variable."""
        base = _stand_in("base of log", self.sample)
        if self.at("_"):
            self.take()
            base = self.group() if self.at("{") else self.atom()
        argument = self.group() if self.at("(", "{") else self._argument()
        below = _apply(MP.log, base)
        if below.about == 0:
            raise _Unknown
        quotient = _divide(_apply(MP.log, argument), below)
        nearest = MP.nint(quotient.about.real)
        if base.exact and argument.exact and abs(nearest) < MAX_BITS and base.exact ** int(nearest) == argument.exact:
            return rational(int(nearest))
        return quotient

    def _argument(self) -> Number:
        r"""What `\sin` applies to without brackets: one product that has no further functions, as in `\sin 2x`."""
        value = self.powered()
        while (token := self.peek()) is not None and (
            token.kind in (Kind.SYMBOL, Kind.NUMBER) or token.text in (r"\pi", r"\frac")
        ):
            value = _combine(value, self.powered(), _times)
        if self.at("/"):
            self.take()
            value = _divide(value, self.powered())
        return value


_PARTNER = {
    "(": (")",),
    "[": ("]",),
    "{": ("}",),
    r"\lfloor": (r"\rfloor",),
    r"\lceil": (r"\rceil",),
    r"\{": (),
    r"\langle": (),
}


def _apply(function: Callable[[Any], Any], argument: Number) -> Number:
    if abs(argument.about) > MAX_ARGUMENT and function is not MP.log:
        raise TooBigError("an argument too large to be meant")
    if argument.about == 0 and function in (MP.log, MP.cot, MP.csc):
        raise _Unknown
    return _inexact(function(argument.about), argument.variables)


def _letters(expression: Tokens) -> Tokens:
    """Words that are products of variables, letter by letter."""
    result: list[Token] = []
    for token in expression:
        if token.kind is Kind.WORD and is_product(token.text):
            result += [Token(Kind.SYMBOL, letter) for letter in token.text]
        else:
            result.append(token)
    return tuple(result)


def _combine(a: Number, b: Number, operation: Callable[[Any, Any], Any]) -> Number:
    variables = a.variables or b.variables
    if a.exact is not None and b.exact is not None:
        exact = operation(a.exact, b.exact)
        if max(exact.numerator.bit_length(), exact.denominator.bit_length()) > 4 * MAX_BITS:
            raise TooBigError("a number too large to be meant")
        return rational(exact)
    return _inexact(operation(a.about, b.about), variables)


def _times(a: Any, b: Any) -> Any:
    return a * b


def _divide(a: Number, b: Number) -> Number:
    return _combine(a, b, lambda x, y: x / y)


def _factorial(value: Number) -> Number:
    if value.exact is None or value.exact.denominator != 1 or value.exact < 0:
        raise _Unknown
    if value.exact > MAX_FACTORIAL:
        raise TooBigError("a factorial too large to be meant")
    return rational(math.factorial(int(value.exact)))


def _binomial(n: Number, k: Number) -> Number:
    if n.exact is None or k.exact is None or n.exact.denominator != 1 or k.exact.denominator != 1:
        raise _Unknown
    if n.exact < 0 or k.exact < 0:
        raise _Unknown
    if n.exact > MAX_BITS:
        raise TooBigError("a binomial coefficient too large to be meant")
    return rational(math.comb(int(n.exact), int(k.exact)))
