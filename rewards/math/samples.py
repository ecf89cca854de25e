r"""Values for variables: enough sets of them that two expressions which agree in all are the same.

Each letter is positive and negative, small and large, and any two letters have both signs against one another, so that
`|y|` is told from `y`, `\sqrt{a^2}` from `a`, and `|s-3|` from `3-s`. Letters of which only whole numbers make sense
(`n!`, `\binom{n}{k}`, `\sum_{k=1}^{n}`, `(-1)^n`) take whole numbers. All values are rational: polynomials are compared
exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from zlib import crc32

from rewards.math.nodes import Node
from rewards.math.numbers import Number, rational

_CONSTANTS = frozenset({"e", "i"})
_BASE_OF_LOG = "base of log"
_COUNTING = frozenset({"n", "k", "m"})
"""Letters that count also where `\\lfloor n/2 \\rfloor` alone does not say so."""
_SETS: tuple[tuple[Fraction, Callable[[int], bool]], ...] = (
    (Fraction(1), lambda position: False),
    (Fraction(1), lambda position: True),
    (Fraction(1, 5), lambda position: position % 2 == 1),
    (Fraction(9, 2), lambda position: position % 2 == 0),
    (Fraction(23), lambda position: False),
    (Fraction(2), lambda position: position // 2 % 2 == 1),
    (Fraction(23), lambda position: position // 2 % 2 == 0),
    (Fraction(12), lambda position: position % 2 == 1),
    (Fraction(15), lambda position: position % 2 == 0),
    (Fraction(5, 2), lambda position: True),
)
"""Size of each set's values, and which letters are negative in it, by their place in the alphabet. Powers beyond
`_STEEP` are compared near one only, where they stay small."""
_STEEP = 12
_CORNERS = frozenset({"abs", "root", "max", "min"})
"""Operations that hide a sign: their arguments should have both."""
_SWEEP = 48
"""Values in a sweep over the real line."""
_WHOLE = (4, 7, 2, 9, 3, 12, 5)
_STEPS = (0, 3, 1, 4, 2, 5)
"""How far the letters that take whole numbers are apart."""


@dataclass(frozen=True, slots=True)
class Letters:
    """What is known of the variables of some expressions."""

    real: tuple[str, ...]
    whole: tuple[str, ...]
    is_complex: bool
    is_steep: bool
    has_corners: bool

    def __bool__(self) -> bool:
        return bool(self.real or self.whole)


def letters_of(nodes: tuple[Node, ...]) -> Letters:
    """The variables of expressions, and which of them are whole numbers."""
    found = _Search()
    for node in nodes:
        found.visit(node, frozenset(), whole=False)
    real = sorted(found.names - found.whole - _CONSTANTS)
    whole = tuple(sorted(found.whole - _CONSTANTS))
    return Letters(tuple(real), whole, found.is_complex, found.is_steep, found.has_corners)


class _Search:
    """A walk through an expression."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.whole: set[str] = set()
        self.is_complex = self.is_steep = self.has_corners = False

    def visit(self, node: Node, bound: frozenset[str], whole: bool) -> None:
        """Take notice of a node and all below it, where `bound` are names of its own, and `whole` what it must be."""
        if node.op == "symbol":
            if node.name not in bound:
                self.names.add(node.name)
                self.is_complex = self.is_complex or node.name == "i"
                if whole:
                    self.whole.add(node.name)
            return
        self.is_complex = self.is_complex or node.name == r"\cis"
        self.has_corners = self.has_corners or node.op in _CORNERS or node.name == r"\sgn"
        if node.op in ("series", "integral", "limit"):
            name = node.name.rpartition(" ")[2]
            *ends, body = node.args
            for end in ends:
                self.visit(end, bound, node.op == "series")
            self.visit(body, bound | {name}, False)
            return
        if node.op in ("!", "binom", "permutations", "gcd", "lcm"):
            whole = True
        if node.op in ("floor", "ceil"):
            for inner in node.walk():
                if inner.op == "symbol" and inner.name in _COUNTING - bound:
                    self.whole.add(inner.name)
        if node.op == "^":
            base, exponent = node.args
            self.is_steep = self.is_steep or any((n.value or 0) > _STEEP for n in exponent.walk())
            self.visit(base, bound, whole)
            self.visit(exponent, bound, whole or _is_negative(base))
            return
        for arg in node.args:
            self.visit(arg, bound, whole)


def _is_negative(node: Node) -> bool:
    """Whether this is a negative constant, of which only whole powers are real."""
    return node.op == "neg" and all(inner.op != "symbol" for inner in node.walk())


def samples(letters: Letters) -> Iterator[Mapping[str, Number]]:
    """Sets of values, the most telling first."""
    for number in range(len(_SETS) if letters else 1):
        yield _sample(letters, number)
    if letters.has_corners and letters.real:
        for number in range(_SWEEP):
            yield _swept(letters, number)


@lru_cache(maxsize=4096)
def _swept(letters: Letters, number: int) -> Mapping[str, Number]:
    """Values all over the real line, so that what stands in `|...|` changes its sign somewhere; no round numbers."""
    values = dict(_sample(letters, 0))
    for position, name in enumerate(letters.real):
        place = number * (2 * position + 1) % _SWEEP - _SWEEP // 2
        if number % 2:
            value = Fraction(2 * place + 1, 3) + Fraction(1, 97)
        else:
            value = Fraction(place or 1, abs(place or 1)) * Fraction(3, 2) ** abs(place) / 50
        values[name] = rational(value, True)
    return values


def values_of(node: Node) -> Mapping[str, Number]:
    """Positive values for the variables of one expression."""
    return _sample(letters_of((node,)), 0)


@lru_cache(maxsize=4096)
def _sample(letters: Letters, number: int) -> Mapping[str, Number]:
    values = {}
    scale, negative = _SETS[number]
    scale = Fraction(1) if letters.is_steep else scale
    for position, name in enumerate(letters.real):
        spread = Fraction(crc32(f"{position}/{number}".encode()) % 89 + 75, 101)
        values[name] = rational(-spread * scale if negative(position) else spread * scale, True)
    for position, name in enumerate(letters.whole):
        step = _STEPS[position % len(_STEPS)]
        values[name] = rational(_WHOLE[(number + step) % len(_WHOLE)] + (position > 0) * position % 3, True)
    if _BASE_OF_LOG in values:
        values[_BASE_OF_LOG] = rational(Fraction(37, 10) + number, True)
    return values
