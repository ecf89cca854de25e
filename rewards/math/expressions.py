r"""What an expression is worth: a recursive-descent reader of tokens that computes while it reads.

It is no computer algebra: `\sqrt{12}` is 3.4641..., and variables are fixed arbitrary numbers, several sets of them.
Two expressions that differ in one set are different; two that agree to forty digits in all sets are equal for every
purpose but a proof (Schwartz-Zippel). What the reader does not know is `None`, never an error, and what would keep it
busy is `TooBigError`.
"""

from __future__ import annotations

import math
from fractions import Fraction

from rewards.math.numbers import (
    FUNCTIONS,
    MAX_BITS,
    MP,
    Number,
    UnknownError,
    apply,
    binomial,
    combine,
    divide,
    factorial,
    inexact,
    literal,
    power,
    rational,
    stand_in,
    times,
)
from rewards.math.tokens import CLOSING, OPENING, Kind, Token, Tokens
from rewards.math.units import is_product

MAX_NESTING = 40
"""Brackets and fractions within one another; deeper ones are not read."""


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
    except (UnknownError, ZeroDivisionError):
        return None


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
            raise UnknownError
        self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.text in texts

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise UnknownError
        total = self.product()
        while self.at("+", "-"):
            minus, term = self.take().text == "-", self.product()
            total = combine(total, term, (lambda a, b: a - b) if minus else (lambda a, b: a + b))
        self.depth -= 1
        return total

    def product(self) -> Number:
        total = self.signed()
        while (token := self.peek()) is not None and token.text not in _ENDS and token.text not in ("+", "-"):
            if token.text == "*":
                self.take()
                total = combine(total, self.signed(), times)
            elif token.text == "/":
                self.take()
                total = divide(total, self.signed())
                if self.position < len(self.tokens) and self._continues():
                    raise UnknownError  # 1/2x may be a half of x or one over 2x
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
            return combine(total, part, times)
        if token.kind is Kind.NUMBER and before.text not in ("!", ")", "}"):
            if not (before.kind is Kind.NUMBER and before.text.isdigit() and token.spaced and token.text.isdigit()):
                raise UnknownError
            top = int(self.take().text)
            if not self.at("/") or total.exact is None:
                raise UnknownError
            self.take()
            bottom = self.take()
            if not bottom.text.isdigit() or not 0 < top < int(bottom.text):
                raise UnknownError
            part = rational(Fraction(top, int(bottom.text)))
            return combine(total, part, (lambda a, b: a + b) if total.exact >= 0 else (lambda a, b: a - b))
        return combine(total, self.powered(), times)

    def signed(self) -> Number:
        sign = 1
        while self.at("+", "-"):
            sign = -sign if self.take().text == "-" else sign
        value = self.powered()
        # A mixed number keeps its sign: -1\frac{1}{2} is -3/2.
        return value if sign == 1 else combine(rational(-1), value, times)

    def powered(self) -> Number:
        value = self.atom()
        while (token := self.peek()) is not None:
            if token.text == "^":
                value = power(value, self.exponent())
            elif token.text == "!":
                self.take()
                value = factorial(value)
            elif token.text == "deg":
                self.take()
                value = combine(value, Number(None, MP.mpc(MP.pi / 180)), times)
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
            raise UnknownError
        value = self.sum()
        if self.take().text not in _PARTNER[opened]:
            raise UnknownError
        if opened == r"\lfloor" or opened == r"\lceil":
            if value.exact is None:
                raise UnknownError
            return rational(math.floor(value.exact) if opened == r"\lfloor" else math.ceil(value.exact))
        return value

    def atom(self) -> Number:
        token = self.peek()
        if token is None:
            raise UnknownError
        if token.text in ("(", "[", "{", r"\lfloor", r"\lceil"):
            return self.group()
        self.take()
        if token.kind is Kind.NUMBER:
            value = literal(token.text)
            if value is None:
                raise UnknownError
            return rational(value)
        if token.kind is Kind.SYMBOL:
            return stand_in(token.text, self.sample)
        if token.text == "|":
            inside = self.sum()
            if self.take().text != "|":
                raise UnknownError
            if inside.exact is not None:
                return rational(abs(inside.exact))
            return inexact(abs(inside.about), inside.variables)
        return self.command(token.text)

    def command(self, name: str) -> Number:
        if name == r"\pi":
            return Number(None, MP.mpc(MP.pi))
        if name == r"\frac":
            return divide(self.group(), self.group())
        if name == r"\binom":
            return binomial(self.group(), self.group())
        if name == r"\sqrt":
            degree = self.group() if self.at("[") else rational(2)
            inside = self.group() if self.at("{", "(") else self.atom()
            if degree.exact is None or degree.exact.denominator != 1 or not 2 <= degree.exact <= 64:
                raise UnknownError
            if degree.exact % 2 and inside.about.real < 0 and inside.about.imag == 0:
                minus = power(combine(rational(-1), inside, times), rational(1 / degree.exact))
                return combine(rational(-1), minus, times)
            return power(inside, rational(1 / degree.exact))
        if name in FUNCTIONS:
            exponent = None
            if self.at("^"):
                self.take()
                exponent = self.group()
                if exponent.exact is None or exponent.exact < 1:
                    raise UnknownError  # \sin^{-1} is an inverse, not a power
            argument = self.group() if self.at("(", "{") else self._argument()
            value = apply(FUNCTIONS[name], argument)
            return value if exponent is None else power(value, exponent)
        if name == r"\log":
            return self.logarithm()
        raise UnknownError

    def logarithm(self) -> Number:
        r"""`\log_2 8`. Without a base it may be any: then the base is one more variable."""
        base = stand_in("base of log", self.sample)
        if self.at("_"):
            self.take()
            base = self.group() if self.at("{") else self.atom()
        argument = self.group() if self.at("(", "{") else self._argument()
        below = apply(MP.log, base)
        if below.about == 0:
            raise UnknownError
        quotient = divide(apply(MP.log, argument), below)
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
            value = combine(value, self.powered(), times)
        if self.at("/"):
            self.take()
            value = divide(value, self.powered())
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


def _letters(expression: Tokens) -> Tokens:
    """Words that are products of variables, letter by letter."""
    result: list[Token] = []
    for token in expression:
        if token.kind is Kind.WORD and is_product(token.text):
            result += [Token(Kind.SYMBOL, letter) for letter in token.text]
        else:
            result.append(token)
    return tuple(result)
