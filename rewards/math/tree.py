r"""An expression as a tree: a recursive-descent reader of tokens.

`\frac{1}{2}x^2` becomes `* (/ 1 2) (^ x 2)`. Reading decides what is a product, what a mixed number, what a function's
application (`f(x)`, if `f` is one of the letters that are functions here), a sum over an index, an integral, a
derivative; what it cannot read is `UnknownError`. Nothing is computed here.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from rewards.math.kinds import CLOSING, OPENING, Kind, Token, Tokens
from rewards.math.named import Names
from rewards.math.nodes import Node, number
from rewards.math.numbers import UnknownError, literal
from rewards.math.operators import is_differential
from rewards.math.units import are_letters

MAX_NESTING = 40
"""Brackets and fractions within one another; deeper ones are not read."""
MAX_TOKENS = 512
_MAX_MARKS = 4
"""Exponents, factorials and degree signs behind one value."""


@lru_cache(maxsize=2048)
def tree(expression: Tokens, functions: frozenset[str] = frozenset()) -> Node | None:
    """Read an expression; `None` if it is not one that this reader knows.

    Args:
        expression: its tokens.
        functions: the letters that stand for functions, so that `f(x)` is no product.

    Raises:
        TooBigError: a number in it is made to keep computers busy.
    """
    if not expression or len(expression) > MAX_TOKENS:
        return None
    try:
        reader = _Reader(letter_by_letter(expression), functions)
        node = reader.sum()
        return node if reader.position == len(reader.tokens) else None
    except (UnknownError, ZeroDivisionError):
        return None


_ENDS = CLOSING | {",", "&", "\\\\", "=", "<", ">", "<=", ">=", "|"}


class _Reader(Names):
    """One reading of one expression; `position` is the next token."""

    def __init__(self, expression: Tokens, functions: frozenset[str]) -> None:
        super().__init__(expression, functions)
        self.depth = 0

    def sum(self) -> Node:
        terms = [self.product()]
        while self.at("+", "-"):
            minus, term = self.take().text == "-", self.product()
            terms.append(Node("neg", (term,)) if minus else term)
        return terms[0] if len(terms) == 1 else Node("+", tuple(terms))

    def product(self) -> Node:
        factors = [self.signed()]
        while (token := self.peek()) is not None and token.text not in _ENDS and token.text not in ("+", "-"):
            if token.text in ("*", "/"):
                self.take()
                factor = self.signed()
                factors.append(Node("inverse", (factor,)) if token.text == "/" else factor)
                if token.text == "/" and self._continues():
                    raise UnknownError  # 1/2x may be a half of x or one over 2x
            elif token.text == "cross":
                self.take()
                factors.append(Node("cross", (factors.pop(), self.signed())))
            elif self.integrals and is_differential(self.tokens, self.position):
                break
            else:
                self._juxtaposed(factors, self.tokens[self.position - 1], token)
        return factors[0] if len(factors) == 1 else Node("*", tuple(factors))

    def _continues(self) -> bool:
        """Whether a factor follows without any sign."""
        token = self.peek()
        return token is not None and token.text not in _ENDS and token.text not in ("+", "-", "*", "/", "^", "!")

    def _juxtaposed(self, factors: list[Node], before: Token, token: Token) -> None:
        """`2x` is a product, but `2 1/2` and `2\\frac{1}{2}` are mixed numbers."""
        if before.kind is Kind.NUMBER and token.text == r"\frac":
            part = self.powered()
            if before.text.isdigit() and _is_proper(part) and (mixed := _mixed(factors[-1], part)) is not None:
                factors[-1] = mixed
            else:
                factors.append(part)
        elif token.kind is Kind.NUMBER and before.text not in ("!", ")", "}"):
            if not (before.kind is Kind.NUMBER and before.text.isdigit() and token.spaced and token.text.isdigit()):
                raise UnknownError
            top = self.take()
            if not self.at("/"):
                raise UnknownError
            self.take()
            bottom = self.take()
            if not bottom.text.isdigit() or not 0 < int(top.text) < int(bottom.text):
                raise UnknownError
            mixed = _mixed(factors[-1], number(Fraction(int(top.text), int(bottom.text))))
            if mixed is None:
                raise UnknownError
            factors[-1] = mixed
        else:
            factors.append(self.powered())

    def signed(self) -> Node:
        sign = 1
        while self.at("+", "-"):
            sign = -sign if self.take().text == "-" else sign
        value = self.powered()
        return value if sign == 1 else Node("neg", (value,))

    def powered(self) -> Node:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise UnknownError
        value = self.atom()
        marks = 0
        while (token := self.peek()) is not None and token.text in ("^", "!", "deg", "{"):
            if token.text == "{":
                if not self.follows("{", "}"):
                    break
                self.position += 2  # empty braces
                continue
            marks += 1
            if marks > _MAX_MARKS:
                raise UnknownError
            value = Node("^", (value, self.exponent())) if token.text == "^" else Node(self.take().text, (value,))
        self.depth -= 1
        return value

    def exponent(self) -> Node:
        """What stands behind `^`; towers are read from the top, as `2^3^2` means `2^9`."""
        self.take()
        value = self.group() if self.at("{") else self.signed()
        return Node("^", (value, self.exponent())) if self.at("^") else value

    def group(self) -> Node:
        """A bracketed expression."""
        opened = self.take().text
        if opened not in OPENING:
            raise UnknownError
        value = self.sum()
        if self.take().text not in _PARTNER[opened]:
            raise UnknownError
        if opened in (r"\lfloor", r"\lceil"):
            return Node("floor" if opened == r"\lfloor" else "ceil", (value,))
        return value

    def atom(self) -> Node:
        token = self.peek()
        if token is None:
            raise UnknownError
        if token.text in ("_", "^"):
            return self.prescript()
        if self.follows("{", "}"):
            self.position += 2
            return self.prescript() if self.at("_") else self.atom()
        if token.text in ("(", "[", "{", r"\lfloor", r"\lceil"):
            return self.group()
        self.take()
        if token.kind is Kind.NUMBER:
            value = literal(token.text)
            if value is None:
                raise UnknownError
            return number(value)
        if token.kind is Kind.SYMBOL or (token.kind is Kind.WORD and token.text.isupper()):
            return self.named(token.text)
        if token.text == "|":
            inside = self.sum()
            if self.take().text != "|":
                raise UnknownError
            return Node("abs", (inside,))
        return self.command(token.text)


_PARTNER = {
    "(": (")",),
    "[": ("]",),
    "{": ("}",),
    r"\lfloor": (r"\rfloor",),
    r"\lceil": (r"\rceil",),
    r"\{": (),
    r"\langle": (),
}


def _is_proper(part: Node) -> bool:
    """Whether this is a fraction of whole numbers below one."""
    if part.op == "number" and part.value is not None:
        return 0 < part.value < 1
    if part.op != "/" or any(arg.op != "number" for arg in part.args):
        return False
    top, bottom = (arg.value for arg in part.args)
    return top is not None and bottom is not None and 0 < top < bottom


def _mixed(total: Node, part: Node) -> Node | None:
    """A whole number and a fraction behind it, with the whole number's sign; `None` behind a product."""
    if total.op == "number":
        return Node("+", (total, part))
    if total.op == "neg" and total.args[0].op == "number":
        return Node("neg", (Node("+", (total.args[0], part)),))
    return None


_DERIVATIVE = re.compile(r"d[a-zA-Z]/d[a-zA-Z]")


def letter_by_letter(expression: Tokens) -> Tokens:
    """Words that are products of variables, letter by letter; but `dy/dx` is one name."""
    if not any(token.kind is Kind.WORD for token in expression):
        return expression
    result: list[Token] = []
    rest = iter(range(len(expression)))
    for position in rest:
        token = expression[position]
        if token.kind is not Kind.WORD:
            result.append(token)
        elif _DERIVATIVE.fullmatch(quotient := "".join(t.text for t in expression[position : position + 3])):
            result.append(Token(Kind.SYMBOL, quotient))
            next(rest), next(rest)
        elif not token.text.isupper() and are_letters(token.text):
            result += [Token(Kind.SYMBOL, letter) for letter in token.text]
        else:
            result.append(token)
    return tuple(result)
