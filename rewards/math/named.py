r"""Reading what has a name: variables, functions and their applications, roots, logarithms, sums, integrals, limits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rewards.math.kinds import INFINITY, Kind, Token, Tokens, closing
from rewards.math.nodes import Node, number
from rewards.math.notation import words
from rewards.math.numbers import UnknownError
from rewards.math.operators import derivative, is_differential

FUNCTIONS = words(
    r"\sin \cos \tan \cot \sec \csc \ln \lg \exp \sinh \cosh \tanh \coth \cis \sgn \arcsin \arccos \arctan \arccot"
    r" \arcsec \arccsc \arcsinh \arccosh \arctanh"
)
_OF_SEVERAL = {r"\gcd": "gcd", r"\lcm": "lcm", r"\max": "max", r"\min": "min"}
_INVERSE = {name: rf"\arc{name[1:]}" for name in FUNCTIONS if rf"\arc{name[1:]}" in FUNCTIONS}
_CHOICES = {"C": "binom", "P": "permutations"}
_MINUS_ONE = ["^", "{", "-", "1", "}"]
_MAX_DEGREE = 64
"""Degree of the highest root that is read."""


class Names(ABC):
    """The half of a reader that knows names; `position` is the next token."""

    def __init__(self, expression: Tokens, functions: frozenset[str]) -> None:
        self.tokens, self.functions, self.position = expression, functions, 0
        self.integrals = 0

    @abstractmethod
    def sum(self) -> Node:
        """A sum of products."""

    @abstractmethod
    def product(self) -> Node:
        """A product of factors."""

    @abstractmethod
    def powered(self) -> Node:
        """One factor with its exponents."""

    @abstractmethod
    def atom(self) -> Node:
        """One factor without them."""

    @abstractmethod
    def exponent(self) -> Node:
        """What stands behind `^`."""

    @abstractmethod
    def group(self) -> Node:
        """A bracketed expression."""

    def peek(self) -> Token | None:
        """The next token, if there is one."""
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> Token:
        """The next token, which is read."""
        token = self.peek()
        if token is None:
            raise UnknownError
        self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        """Whether the next token is one of these."""
        token = self.peek()
        return token is not None and token.text in texts

    def follows(self, *texts: str) -> bool:
        """Whether these are the next tokens."""
        return [t.text for t in self.tokens[self.position : self.position + len(texts)]] == list(texts)

    def named(self, name: str) -> Node:
        """A variable, the application of a function, or the number of combinations or permutations."""
        if name in _CHOICES and self.at("("):
            start, args = self.position, self._arguments()
            if len(args) == 2:
                return Node(_CHOICES[name], args)
            self.position = start
        if name.startswith("C_") and name[2:].isdigit() and self.at("^"):
            return Node("binom", (number(int(name[2:])), self.exponent()))
        if name not in self.functions:
            return Node("symbol", name=name)
        inverse = self.follows(*_MINUS_ONE)
        if inverse:
            self.position += 5
        if not self.at("("):
            return Node("symbol", name=name)
        return Node("call", self._arguments(), f"{name} inverse" if inverse else name)

    def _arguments(self) -> tuple[Node, ...]:
        """Expressions in round brackets, separated by commas."""
        self.take()
        args = [self.sum()]
        while self.at(","):
            self.take()
            args.append(self.sum())
        if self.take().text != ")":
            raise UnknownError
        return tuple(args)

    def prescript(self) -> Node:
        """`{}_{10}C_3`: a number of combinations or permutations."""
        self.take()
        top = self.group() if self.at("{") else self.atom()
        name, _, below = self.take().text.partition("_")
        if name not in _CHOICES or not below.isdigit():
            raise UnknownError
        return Node(_CHOICES[name], (top, number(int(below))))

    def command(self, name: str) -> Node:
        """What follows a command that was just read."""
        if name == r"\pi":
            return Node("pi")
        if name == r"\frac":
            found = derivative(self.tokens, self.position)
            if found is not None:
                self.position, symbol = found
                return (
                    Node("call", (self.powered(),), symbol) if symbol.startswith("d/") else Node("symbol", name=symbol)
                )
            return Node("/", (self.group(), self.group()))
        if name == r"\binom":
            return Node("binom", (self.group(), self.group()))
        if name == r"\sqrt":
            degree = self.group() if self.at("[") else number(2)
            inside = self.group() if self.at("{", "(") else self.atom()
            if degree.value is not None and not 2 <= degree.value <= _MAX_DEGREE:
                raise UnknownError
            return Node("root", (inside, degree))
        if name in FUNCTIONS:
            return self._function(name)
        if name == r"\log":
            return self._logarithm()
        if name in _OF_SEVERAL and self.at("("):
            return Node(_OF_SEVERAL[name], self._arguments())
        if name in (r"\sum", r"\prod"):
            return self._series(name)
        if name == r"\int":
            return self._integral()
        if name == r"\lim":
            return self._limit()
        raise UnknownError

    def _function(self, name: str) -> Node:
        exponent = None
        if self.at("^"):
            if self.follows(*_MINUS_ONE):
                name = _INVERSE.get(name, "")  # \sin^{-1} is an inverse, not a power
            exponent = self.exponent()
            if not name:
                raise UnknownError
            exponent = None if exponent == Node("neg", (number(1),)) else exponent
        argument = self.group() if self.at("(", "{") else self._argument()
        if name == r"\ln" and self.at("^") and exponent is None and self.tokens[self.position - 1].text != ")":
            raise UnknownError
        value = Node("apply", (argument,), name)
        return value if exponent is None else Node("^", (value, exponent))

    def _logarithm(self) -> Node:
        r"""`\log_2 8`. Without a base it may be any: then the base is one more variable."""
        base = Node("symbol", name="base of log")
        if self.at("_"):
            self.take()
            base = self.group() if self.at("{") else self.atom()
        exponent = self.exponent() if self.at("^") else None
        argument = self.group() if self.at("(", "{") else self._argument()
        value = Node("log", (base, argument))
        return value if exponent is None else Node("^", (value, exponent))

    def _argument(self) -> Node:
        r"""What `\sin` applies to without brackets: one product that has no further functions, as in `\sin 2x`."""
        value = self.powered()
        while (token := self.peek()) is not None and (
            token.kind in (Kind.SYMBOL, Kind.NUMBER) or token.text in (r"\pi", r"\frac")
        ):
            if self.integrals and is_differential(self.tokens, self.position):
                break
            value = Node("*", (value, self.powered()))
        if self.at("/"):
            self.take()
            value = Node("/", (value, self.powered()))
        return value

    def _series(self, name: str) -> Node:
        r"""`\sum_{k=1}^{n} k^2`: its index is a name of its own."""
        index, low = self._lower("=")
        if not self.at("^"):
            raise UnknownError
        self.take()
        high = self._bound()
        return Node("series", (low, high, self.product()), f"{name} {index}")

    def _lower(self, sign: str) -> tuple[str, Node]:
        """Index and first value of `_{k=1}`, variable and point of `_{x \\to 0}`."""
        if not self.follows("_", "{"):
            raise UnknownError
        self.position += 2
        index = self.take()
        if index.kind is not Kind.SYMBOL or self.take().text != sign:
            raise UnknownError
        value = self._bound(inside=True)
        if self.take().text != "}":
            raise UnknownError
        return index.text, value

    def _bound(self, inside: bool = False) -> Node:
        start = self.position + (not inside and self.at("{"))
        end = closing(self.tokens, self.position) if not inside and self.at("{") else None
        sign = 1
        for offset, token in enumerate(self.tokens[start : start + 2]):
            if token == INFINITY:
                self.position = end + 1 if end is not None else start + offset + 1
                return Node("infinity") if sign > 0 else Node("neg", (Node("infinity"),))
            if token.text not in "+-":
                break
            sign = -1 if token.text == "-" else 1
        if inside:
            return self.sum()
        return self.group() if self.at("{") else self.atom()

    def _integral(self) -> Node:
        r"""`\int_0^1 x^2 \, dx`; without bounds they are empty sums."""
        low = high = Node("none")
        if self.at("_"):
            self.take()
            low = self._bound()
            if not self.at("^"):
                raise UnknownError
            self.take()
            high = self._bound()
        self.integrals += 1
        body = number(1) if is_differential(self.tokens, self.position) else self.sum()
        self.integrals -= 1
        variable = is_differential(self.tokens, self.position)
        if not variable:
            raise UnknownError
        self.position += 1 if len(self.tokens[self.position].text) > 1 else 2
        return Node("integral", (low, high, body), variable)

    def _limit(self) -> Node:
        variable, point = self._lower(r"\to")
        return Node("limit", (point, self.product()), variable)
