"""Comparing quantities: values with units, percentages, angles, money."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rewards.math.numbers import evaluate
from rewards.math.shapes import Quantity
from rewards.math.tokens import Kind, Token, Tokens, fraction_tokens
from rewards.math.units import DEGREE, PERCENT, RADIAN, Unit
from rewards.math.values import some

Leaf = Callable[[Tokens, Tokens], bool | None]
"""Compares two expressions: gold first."""


def quantities(gold: Quantity, answer: Quantity, leaf: Leaf) -> bool | None:
    if gold.written == answer.written:
        return True
    g, a = gold.unit, answer.unit
    if g is None and a is None:
        return leaf(gold.value, answer.value)
    if g is not None and a is not None:
        if PERCENT in (g, a) and g != a:
            return False
        if {DEGREE.dimensions, RADIAN.dimensions} == {g.dimensions, a.dimensions}:
            return leaf(_in_radians(gold), _in_radians(answer))
        return leaf(_scaled(gold, g, a), answer.value) if g.agrees(a) else False
    if g is not None:
        return _one_sided(gold, answer.value, leaf, True)
    assert a is not None
    return _one_sided(answer, gold.value, leaf, False)


def _one_sided(quantity: Quantity, bare: Tokens, leaf: Leaf, gold_has_it: bool) -> bool | None:
    """Only one side states a unit: it is understood on the other, if the numbers agree as they stand."""

    def equal(with_unit: Tokens, without: Tokens) -> bool | None:
        return leaf(with_unit, without) if gold_has_it else leaf(without, with_unit)

    unit = quantity.unit
    assert unit is not None
    if unit == PERCENT:
        as_written = equal(quantity.value, bare)
        if as_written and not gold_has_it:  # 0.5 is not 0.5 %, but 50 may be meant as 50 %
            value = evaluate(bare)
            as_written = value is not None and abs(value.about) > 1
        return some([as_written, equal(_product(quantity.value, Fraction(1, 100)), bare)])
    if unit.dimensions == DEGREE.dimensions:
        return some([equal(quantity.value, bare), equal(_in_radians(quantity), bare)])
    if not unit.dimensions and unit.factor != 1:  # "5 million", "two dozen eggs"
        return equal(_product(quantity.value, unit.factor), bare)
    as_letters = equal(quantity.written, bare) if unit.label == () else False
    return some([equal(quantity.value, bare), as_letters])


def _scaled(quantity: Quantity, own: Unit, other: Unit) -> Tokens:
    """The value of a quantity when measured in another unit of the same kind."""
    return quantity.value if own.factor == other.factor else _product(quantity.value, own.factor / other.factor)


def _product(value: Tokens, factor: Fraction) -> Tokens:
    times, opened, closed = (Token(Kind.OPERATOR, text) for text in "*()")
    known = evaluate(value)
    if known is not None and known.exact is not None:
        return fraction_tokens(known.exact * factor)
    return (*fraction_tokens(factor), times, opened, *value, closed)


def _in_radians(quantity: Quantity) -> Tokens:
    if quantity.unit is None or quantity.unit.dimensions != DEGREE.dimensions:
        return quantity.value
    return (*_product(quantity.value, Fraction(1, 180)), Token(Kind.OPERATOR, "*"), Token(Kind.COMMAND, r"\pi"))
