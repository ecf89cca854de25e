r"""What an expression is worth, with given values of its variables.

It is no computer algebra: `\sqrt{12}` is 3.4641..., and variables are numbers, several sets of them (`samples`). Two
expressions that differ in one set are different; two that agree in all sets are equal for every purpose but a proof
(Schwartz-Zippel). What the evaluator does not know is `None`, never an error, and what would keep it busy is
`TooBigError`. What is not computed, as an integral, is a number made of what stands in it: equal ones have equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any
from zlib import crc32

from rewards.math.arithmetic import Arithmetic, arithmetic, natural
from rewards.math.kinds import Tokens
from rewards.math.nodes import Node
from rewards.math.numbers import Number, OutsideError, TooBigError, UnknownError, rational
from rewards.math.samples import values_of
from rewards.math.tree import tree

DIGITS = 50
"""Decimal digits with which values are compared at first."""
MAX_TERMS = 400
"""Terms of the longest sum that is added up."""
MAX_STEPS = 10000
"""Operations of one evaluation, all terms of its sums included."""
_DUMMIES = tuple(Fraction(n, 13) for n in (7, 19, 37))
"""What the variable of an integral or a limit takes, to tell one integrand from another."""
_FINGERPRINT_DIGITS = 15
_QUADRATURE_DEGREE = 6
"""Of mpmath's tanh-sinh rule: a few hundred points, enough for fifty digits of a smooth integrand."""

Values = Mapping[str, Number]


def evaluate(expression: Tokens) -> Number | None:
    """The value of an expression, its variables taken for fixed positive numbers; `None` if it cannot be read.

    Raises:
        TooBigError: computing it would take unreasonably long.
    """
    node = tree(expression)
    if node is None:
        return None
    values = values_of(node)
    for real in (True, False):
        try:
            return evaluated(node, values, DIGITS, real)
        except OutsideError:
            continue
    return None


def evaluated(node: Node, values: Values, digits: int, real: bool) -> Number | None:
    """The value of an expression; `None` if it has no value, or cannot be computed here.

    Args:
        node: the expression.
        values: of its variables.
        digits: decimal digits of what is not exact.
        real: whether the variables are real, so that the square root of a negative one has no value.

    Raises:
        TooBigError: computing it would take unreasonably long.
        OutsideError: it has no value for these values of its variables.
    """
    if not values:
        return _constant(node, digits, real)
    return _evaluated(node, values, digits, real)


@lru_cache(maxsize=2048)
def _constant(node: Node, digits: int, real: bool) -> Number | None:
    return _evaluated(node, {}, digits, real)


def _evaluated(node: Node, values: Values, digits: int, real: bool) -> Number | None:
    try:
        return _Evaluation(values, arithmetic(digits, real)).of(node)
    except OutsideError:
        raise
    except (UnknownError, ZeroDivisionError):
        return None


class _Evaluation:
    """One computation."""

    def __init__(self, values: Values, with_: Arithmetic) -> None:
        self.values, self.arithmetic, self.steps = dict(values), with_, 0

    def of(self, node: Node) -> Number:
        """The value of a node."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooBigError("a computation too long to be meant")
        if node.value is not None:
            return rational(node.value)
        if node.op == "symbol":
            return self._symbol(node.name)
        special = _SPECIAL.get(node.op)
        if special is not None:
            return special(self, node)
        args = [self.of(arg) for arg in node.args]
        if node.op in ("root", "^") and node.args[0].op in ("*", "/") and self.arithmetic.real:
            self._mind_factors(node, args[1])
        operation = _OPERATIONS.get(node.op)
        if operation is None:
            raise UnknownError
        return operation(self.arithmetic, args, node.name)

    def _mind_factors(self, node: Node, degree: Number) -> None:
        r"""By custom `\sqrt{xy}` is for factors of which none is negative, so that it is `\sqrt{x}\sqrt{y}`.

        Raises:
            OutsideError: one is.
        """
        even = degree.exact is not None and (degree.exact if node.op == "root" else degree.exact.denominator) % 2 == 0
        for factor in node.args[0].args if even else ():
            value = self.of(factor)
            if value.variables and self.arithmetic.value(value).real < 0:
                raise OutsideError

    def _symbol(self, name: str) -> Number:
        if name in self.values:
            return self.values[name]
        mp = self.arithmetic.mp
        if name == "e":
            return self.arithmetic.constant(+mp.e)
        if name == "i":
            return self.arithmetic.constant(mp.mpc(0, 1))
        raise UnknownError

    def pi(self, node: Node) -> Number:
        """The circle's number."""
        return self.arithmetic.constant(+self.arithmetic.mp.pi)

    def series(self, node: Node) -> Number:
        """A sum or a product over an index, term by term."""
        low, high, body = node.args
        if high.op == "infinity":
            return self.opaque(node)
        kind, _, index = node.name.partition(" ")
        first, last = self.of(low), self.of(high)
        start, end = natural(first), natural(last)
        if end - start > MAX_TERMS:
            raise OutsideError if last.variables else TooBigError("a sum too long to be meant")
        total = rational(0 if kind == r"\sum" else 1, first.variables or last.variables)
        combine = self.arithmetic.add if kind == r"\sum" else self.arithmetic.times
        for n in range(start, end + 1):
            total = combine(total, self._with(index, rational(n), body))
        return total

    def opaque(self, node: Node) -> Number:
        """A number that stands for an integral, a limit or an endless sum, made of its parts."""
        *bounds, body = node.args
        seen = [node.op, node.name.partition(" ")[0] if node.op == "series" else ""]
        for bound in bounds:
            seen.append(bound.op if bound.op in ("infinity", "none") else self._print(bound))
            if bound.op == "neg" and bound.args[0].op == "infinity":
                seen[-1] = "-infinity"
        name = node.name.rpartition(" ")[2]
        for dummy in _DUMMIES:
            try:
                seen.append(self._written(self._with(name, rational(dummy, True), body)))
            except OutsideError:
                seen.append("outside")
        return Number(_stand_in(" ".join(seen)), None, True, 2, True)

    def integral(self, node: Node) -> Number:
        """A definite integral by tanh-sinh quadrature, if that is precise; else what stands for it.

        Quadrature shows that two integrals agree; that they do not is left to algebra, for it may have missed a spike.
        """
        low, high, body = node.args
        mp = self.arithmetic.mp
        if any(inner.op in ("infinity", "none") for end in (low, high) for inner in end.walk()):
            return self.opaque(node)

        def integrand(x: Any) -> Any:
            return self.arithmetic.value(self._with(node.name, Number(None, x, False, 2), body))

        try:
            ends = [self.arithmetic.value(self.of(end)) for end in (low, high)]
            value, error = mp.quad(integrand, ends, error=True, maxdegree=_QUADRATURE_DEGREE)
        except (UnknownError, ZeroDivisionError, TooBigError):
            return self.opaque(node)
        precise = abs(error) < mp.mpf(10) ** (5 - DIGITS) * max(1, abs(value))
        return self.arithmetic.inexact(value)._replace(opaque=True) if precise else self.opaque(node)

    def _print(self, node: Node) -> str:
        if node.op == "neg" and node.args[0].op == "infinity":
            return ""
        return self._written(self.of(node))

    def _written(self, number: Number) -> str:
        return str(self.arithmetic.mp.nstr(self.arithmetic.value(number), _FINGERPRINT_DIGITS))

    def _with(self, name: str, value: Number, body: Node) -> Number:
        """The value of a body in which a name has a value of its own."""
        before = self.values.get(name)
        self.values[name] = value
        try:
            return self.of(body)
        finally:
            if before is None:
                del self.values[name]
            else:
                self.values[name] = before


def _stand_in(text: str) -> Fraction:
    """A fixed rational between one and two."""
    return 1 + Fraction(crc32(text.encode()), 2**32)


def _call(on: Arithmetic, args: list[Number], name: str) -> Number:
    """An unknown function of numbers: a polynomial that is its own, and neither odd, even nor symmetric."""
    total = rational(_stand_in(name), True)
    for position, arg in enumerate(args):
        own = rational(Fraction(crc32(f"{name}/{position}".encode()) % 97 + 3, 50))
        square = on.times(total, total)
        total = on.add(on.add(on.times(own, square), on.times(total, arg)), on.times(arg, on.times(arg, arg)))
    return total


def _cross(on: Arithmetic, args: list[Number], name: str) -> Number:
    """A product that changes its sign with the order of its factors, as that of vectors does."""
    a, b = args
    cubes = [on.times(x, on.times(x, x)) for x in (a, b)]
    difference = on.add(on.times(a, cubes[1]), on.negative(on.times(b, cubes[0])))
    return Number(difference.exact, difference.inexact, True, difference.size, difference.opaque)


def _extreme(on: Arithmetic, args: list[Number], name: str) -> Number:
    largest = name == "max"
    best = args[0]
    for arg in args[1:]:
        a, b = on.value(arg), on.value(best)
        if not all(isinstance(value, on.mp.mpf) for value in (a, b)):
            raise UnknownError
        best = arg if (a > b) == largest else best
    return best


def _divisors(on: Arithmetic, args: list[Number], name: str) -> Number:
    function = math.gcd if name == "gcd" else math.lcm
    return rational(function(*(natural(arg) for arg in args)), any(arg.variables for arg in args))


def _add(on: Arithmetic, args: list[Number], name: str) -> Number:
    total = args[0]
    for arg in args[1:]:
        total = on.add(total, arg)
    return total


def _multiply(on: Arithmetic, args: list[Number], name: str) -> Number:
    total = args[0]
    for arg in args[1:]:
        total = on.times(total, arg)
    return total


def _degrees(on: Arithmetic, args: list[Number], name: str) -> Number:
    return on.times(args[0], on.constant(on.mp.pi / 180))


_SPECIAL: Mapping[str, Callable[[_Evaluation, Node], Number]] = {
    "pi": _Evaluation.pi,
    "series": _Evaluation.series,
    "integral": _Evaluation.integral,
    "limit": _Evaluation.opaque,
}
_OPERATIONS: Mapping[str, Callable[[Arithmetic, list[Number], str], Number]] = {
    "+": _add,
    "*": _multiply,
    "neg": lambda on, args, name: on.negative(args[0]),
    "inverse": lambda on, args, name: on.inverse(args[0]),
    "/": lambda on, args, name: on.times(args[0], on.inverse(args[1])),
    "^": lambda on, args, name: on.power(args[0], args[1]),
    "root": lambda on, args, name: on.root(args[0], args[1]),
    "!": lambda on, args, name: on.factorial(args[0]),
    "deg": _degrees,
    "abs": lambda on, args, name: on.absolute(args[0]),
    "floor": lambda on, args, name: on.rounded(args[0], up=False),
    "ceil": lambda on, args, name: on.rounded(args[0], up=True),
    "binom": lambda on, args, name: on.binomial(args[0], args[1]),
    "permutations": lambda on, args, name: on.binomial(args[0], args[1], ordered=True),
    "apply": lambda on, args, name: on.apply(name, args[0]),
    "log": lambda on, args, name: on.logarithm(args[0], args[1]),
    "call": _call,
    "cross": _cross,
    "max": lambda on, args, name: _extreme(on, args, "max"),
    "min": lambda on, args, name: _extreme(on, args, "min"),
    "gcd": lambda on, args, name: _divisors(on, args, "gcd"),
    "lcm": lambda on, args, name: _divisors(on, args, "lcm"),
}
