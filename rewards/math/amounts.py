"""Quantities in more than one piece: `1 hour 30 minutes`, `22°30'`, `twenty-one dogs`."""

from __future__ import annotations

from fractions import Fraction

from rewards.math.kinds import Kind, Token, Tokens, fraction_tokens
from rewards.math.number_words import NUMBER_WORDS, leading
from rewards.math.numbers import literal
from rewards.math.shapes import Quantity
from rewards.math.units import DEGREE, split_unit


def amount(written: Tokens) -> Quantity | None:
    """A quantity in pieces or in words; `None` for what is none."""
    return _sexagesimal(written) or _compound(written) or _counted(written)


def _sexagesimal(written: Tokens) -> Quantity | None:
    """`22°30'` and `22°30'36''`: degrees, minutes and seconds of arc."""
    if "deg" not in [token.text for token in written[1:3]]:
        return None
    sign = written[:1] if written[0].text in "+-" else ()
    total, unit, position = Fraction(0), Fraction(1), len(sign)
    for marks in (("deg",), ("'",), ("'", "'")):
        number, end = written[position : position + 1], position + 1 + len(marks)
        if position == len(written):
            break
        marked = tuple(token.text for token in written[position + 1 : end]) == marks
        if marks == ("'", "'") and not marked and [t.text for t in written[position + 1 :]] == ['"']:
            marked, end = True, position + 2
        value = literal(number[0].text) if number[0].kind is Kind.NUMBER and marked else None
        if value is None or (unit < 1 and value >= 60):
            return None
        total, unit, position = total + value * unit, unit / 60, end
    if position != len(written) or unit > Fraction(1, 60 * 60):
        return None  # degrees alone are an ordinary quantity
    return Quantity((*sign, *fraction_tokens(total)), DEGREE, written)


def _compound(written: Tokens) -> Quantity | None:
    """`1 hour 30 minutes`, `2 dollars and 50 cents`: quantities in ever smaller units of one kind, added up."""
    if written[-1].kind not in (Kind.WORD, Kind.TEXT, Kind.SYMBOL):
        return None
    written = tuple(token for token in written if token.text != "and")
    starts = [
        i
        for i, t in enumerate(written)
        if t.kind is Kind.NUMBER and (i == 0 or written[i - 1].kind in (Kind.WORD, Kind.TEXT))
    ]
    if len(starts) < 2 or starts[0] != 0:
        return None
    total, first, before = Fraction(0), None, None
    for start, end in zip(starts, [*starts[1:], len(written)], strict=True):
        value, unit = split_unit(written[start:end])
        if unit is None or not unit.dimensions or len(value) != 1 or not value[0].text.isdigit():
            return None
        if before is not None and (before.dimensions != unit.dimensions or before.factor <= unit.factor):
            return None
        first, before = first or unit, unit
        total += int(value[0].text) * unit.factor
    assert first is not None
    return Quantity(fraction_tokens(total / first.factor), first, written)


def _counted(written: Tokens) -> Quantity | None:
    """`twenty-one`, `minus five`, `a hundred dogs`, `one hour`: a whole number in words, alone or with a unit."""
    sign = written[:1] if written[0].text in ("-", "+") else ()
    rest = written[len(sign) :]
    if len(rest) > 1 and rest[0].text.lower() in ("a", "an", "the") and rest[1].text.lower() in NUMBER_WORDS:
        rest = rest[1:]
    found = leading(rest)
    if found is None:
        return None
    number, length = found
    value: Tokens = (*sign, Token(Kind.NUMBER, str(number)))
    if length == len(rest):
        return Quantity(value, None, written)
    if rest[length].kind not in (Kind.WORD, Kind.TEXT):
        return None
    value, unit = split_unit((*value, *rest[length:]))
    return None if unit is None else Quantity(value, unit, written)
