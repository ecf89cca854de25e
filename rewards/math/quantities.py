"""Comparing quantities: values with units, percentages, angles, money; and ratios."""

from __future__ import annotations

from fractions import Fraction

from rewards.math.expressions import evaluate
from rewards.math.kinds import Kind, Token, Tokens, fraction_tokens
from rewards.math.shapes import Quantity, Ratio, Shape
from rewards.math.trim import trim
from rewards.math.units import DEGREE, PERCENT, RADIAN, Unit, in_letters
from rewards.math.values import Leaf, every, some

_OPENED, _CLOSED = Token(Kind.OPERATOR, "("), Token(Kind.OPERATOR, ")")


def quantities(gold: Quantity, answer: Quantity, leaf: Leaf) -> bool | None:
    """Whether two quantities are the same, in the policy of `rewards.math.compare` on units."""
    if gold.written == answer.written:
        return True
    if (wanted := residue(gold.written)) is not None:
        given = residue(answer.written, "mod", r"\mod", r"\bmod")
        if given is None:
            return leaf(wanted[0], answer.value)  # the modulus is understood
        return every(leaf(g, a) for g, a in zip(wanted, given, strict=True))
    answer = _with_unit(gold, answer)
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


def residue(written: Tokens, *signs: str) -> tuple[Tokens, Tokens] | None:
    r"""`3 \pmod{7}` and `3 (mod 7)` as 3 and 7, and so with further signs for the modulus; `None` for others."""
    sign = next((n for n, token in enumerate(written) if token.text in (r"\pmod", "mod", *signs)), 0)
    value, modulus = written[:sign], trim(written[sign + 1 :])
    if value[-1:] == (_OPENED,) and modulus[-1:] == (_CLOSED,):
        value, modulus = value[:-1], modulus[:-1]
    elif sign and written[sign].text not in (r"\pmod", *signs):
        return None
    return (value, modulus) if value and modulus else None


def _with_unit(gold: Quantity, answer: Quantity) -> Quantity:
    """An answer `5m` with metres for its letter, where the gold has no letters that could be variables."""
    if answer.unit is not None or any(token.kind is Kind.SYMBOL for token in gold.value):
        return answer
    found = in_letters(answer.written)
    return answer if found is None else Quantity(found[0], found[1], answer.written)


def _one_sided(quantity: Quantity, bare: Tokens, leaf: Leaf, gold_has_it: bool) -> bool | None:
    """Only one side states a unit: it is understood on the other, if the numbers agree as they stand."""

    def equal(with_unit: Tokens, without: Tokens) -> bool | None:
        return leaf(with_unit, without) if gold_has_it else leaf(without, with_unit)

    unit = quantity.unit
    assert unit is not None
    if not unit.dimensions and unit.factor != 1:  # 5 cm/m
        return equal(_product(quantity.value, unit.factor), bare)
    as_written = equal(quantity.value, bare)
    if unit == PERCENT:
        if as_written and not gold_has_it:  # 0.5 is not 0.5 %, but 50 may be meant as 50 %
            value = evaluate(bare)
            as_written = value is not None and abs(value.about) > 1
        return as_written or some([as_written, equal(_product(quantity.value, Fraction(1, 100)), bare)])
    if unit.dimensions == DEGREE.dimensions:
        return as_written or some([as_written, equal(_in_radians(quantity), bare)])
    as_letters = equal(quantity.written, bare) if not as_written and unit.label == () else False
    return some([as_written, as_letters])


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


def ratios(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Ratios in any terms, `2:3` as two thirds, and times of day digit by digit."""
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        if gold.half and answer.half and gold.half != answer.half:
            return False
        values = [[_worth(part) for part in ratio.parts] for ratio in (gold, answer)]
        if gold.is_time or answer.is_time or 0 in values[0] or 0 in values[1]:
            return None not in values[0] and values[0] == values[1]
        if len(gold.parts) != len(answer.parts):
            return False
        first = gold.parts[0], answer.parts[0]
        pairs = zip(gold.parts[1:], answer.parts[1:], strict=True)
        return every(leaf(quotient(g, first[0]), quotient(a, first[1])) for g, a in pairs)
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    assert isinstance(ratio, Ratio)
    if ratio.is_time or len(ratio.parts) != 2 or not isinstance(other, Quantity):
        return False
    if 0 in [_worth(part) for part in ratio.parts]:
        return False
    value = quotient(*ratio.parts)
    return leaf(value, other.value) if ratio is gold else leaf(other.value, value)


def _worth(part: Tokens) -> Fraction | None:
    value = evaluate(part)
    return None if value is None else value.exact


def quotient(above: Tokens, below: Tokens) -> Tokens:
    """One expression over another."""
    opened, closed = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
    return (Token(Kind.COMMAND, r"\frac"), opened, *above, closed, opened, *below, closed)
