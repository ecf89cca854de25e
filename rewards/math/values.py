"""Comparing expressions by their values, and logic with three values: true, false, and not known yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rewards.math.expressions import evaluate
from rewards.math.latex import latex, used
from rewards.math.numbers import MP, SAMPLES, Number
from rewards.math.tokens import INFINITY, Kind, Tokens, split

Leaf = Callable[[Tokens, Tokens], bool | None]
"""Compares two expressions: gold first."""
TOLERANCE = MP.mpf(10) ** -6
"""Relative difference up to which a decimal may stand for a value; tighter than any rounding a person does by hand."""
_FEWEST_DIGITS = 6
"""Significant digits that a decimal must show to stand for another number: fewer cannot claim such a tolerance."""
_SAME = MP.mpf(10) ** -40
"""Relative difference between two ways to compute one value to fifty digits."""
_NOTHING = MP.mpf(10) ** -45
"""What is left where two equal terms cancel."""
_FLOAT_NOISE = MP.mpf(10) ** -12
"""Relative error that binary floating point leaves in a gold such as 0.30000000000000004."""


def exact(gold: Tokens, answer: Tokens) -> bool | None:
    """Compare two expressions by their values; `None` if that takes an algebra system."""
    if gold == answer:
        return True
    equal = _by_value(gold, answer)
    allowed = used(gold)
    return False if equal is None and (latex(gold, allowed) is None or latex(answer, allowed) is None) else equal


def _by_value(gold: Tokens, answer: Tokens) -> bool | None:
    if any(token.text in _RELATIONS for token in (*gold, *answer)):
        return _same_relation(gold, answer)
    ends = infinite(gold), infinite(answer)
    if any(ends):
        return ends[0] == ends[1]
    for sample in range(SAMPLES):
        a, b = evaluate(gold, sample), evaluate(answer, sample)
        if a is None or b is None:
            return None
        if a.exact is not None and a.exact == b.exact:
            return True
        if not a.variables and not b.variables:
            if places_of(gold) is not None or places_of(answer) is not None:
                return _close((a, gold), (b, answer))
            return False if a.exact is not None and b.exact is not None else equal_values(a.about, b.about)
        if not equal_values(a.about, b.about):
            return False
    return True


_RELATIONS = frozenset({"=", "<", ">", "<=", ">="})


def _same_relation(gold: Tokens, answer: Tokens) -> bool | None:
    """Whether two equations or inequalities are multiples of one another: `y = 2x` and `4x - 2y = 0`."""
    cut = [split(written, lambda i, w=written: w[i].text in _RELATIONS) for written in (gold, answer)]  # type: ignore[misc]
    if any(len(sides) != 2 for sides in cut):
        return None if len(cut[0]) == len(cut[1]) else False
    signs = [written[len(sides[0])].text for written, sides in zip((gold, answer), cut, strict=True)]
    for n, sign in enumerate(signs):
        if sign.startswith(">"):
            cut[n], signs[n] = cut[n][::-1], sign.replace(">", "<")
    if signs[0] != signs[1]:
        return False
    ratios = []
    for sample in range(SAMPLES):
        values = [evaluate(side, sample) for sides in cut for side in sides]
        if any(value is None for value in values):
            return None
        g, h, a, b = (value.about for value in values if value is not None)
        if equal_values(g, h) or equal_values(a, b):
            return False
        ratios.append((a - b) / (g - h))
    if not all(equal_values(ratio, ratios[0]) for ratio in ratios) or not any(v and v.variables for v in values):
        return False
    return signs[0] == "=" or bool(ratios[0].real > 0 and equal_values(ratios[0], ratios[0].real))


def equal_values(a: Any, b: Any) -> bool:
    """Whether two values of fifty digits agree in forty, or differ only by what cancelled."""
    apart = abs(a - b)
    return bool(apart <= _SAME * max(abs(a), abs(b)) or apart < _NOTHING)


def places_of(expression: Tokens) -> int | None:
    """How many decimals a decimal number shows; `None` for what is no decimal number."""
    core = expression[1:] if expression[0].text in "+-" else expression
    mantissa = core[0].text if core and core[0].kind is Kind.NUMBER else ""
    if "." not in mantissa or "(" in mantissa or "..." in mantissa or len(core) > 1:
        return None
    digits, _, exponent = mantissa.partition("e")
    return len(digits.partition(".")[2]) - int(exponent or 0)


def _significant(decimal: Tokens) -> int:
    return len(decimal[-1].text.partition("e")[0].replace(".", "").lstrip("0"))


def _close(gold: tuple[Number, Tokens], answer: tuple[Number, Tokens]) -> bool:
    """Whether the shorter decimal, or the only one, stands for the other value.

    It does if it agrees to one part in a million, rounded up or down in the last of six or more digits.
    """
    (a, _), (b, _) = gold, answer
    x, y = a.about, b.about
    shown = [(places, written) for _, written in (gold, answer) if (places := places_of(written)) is not None]
    same_length = len(shown) == 2 and shown[0][0] == shown[1][0]
    if abs(x.imag) > _NOTHING or abs(y.imag) > _NOTHING or same_length or x == 0 or y == 0:
        return False
    apart = abs(x - y) / max(abs(x), abs(y))
    if apart <= _FLOAT_NOISE:
        return True
    if any(n.exact is not None and n.exact.denominator == 1 for n in (a, b)):
        return False
    places, decimal = min(shown, key=lambda one: one[0])
    unit = MP.mpf(10) ** -places * (1 - _FLOAT_NOISE)  # 0.1000001 is a whole unit off 1/10: no rounding of it
    return bool(_significant(decimal) >= _FEWEST_DIGITS and abs(x - y) < unit and apart <= TOLERANCE)


def infinite(expression: Tokens) -> int:
    """1 or -1 for plus or minus infinity, else 0."""
    if expression[-1:] != (INFINITY,):
        return 0
    sign = [token.text for token in expression[:-1]]
    return {(): 1, ("+",): 1, ("-",): -1}.get(tuple(sign), 0)


def every(results: Iterable[bool | None]) -> bool | None:
    """`all` for three values."""
    unknown = False
    for result in results:
        if result is False:
            return False
        unknown = unknown or result is None
    return None if unknown else True


def some(results: Iterable[bool | None]) -> bool | None:
    """`any` for three values."""
    unknown = False
    for result in results:
        if result:
            return True
        unknown = unknown or result is None
    return None if unknown else False
