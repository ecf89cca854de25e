"""Comparing expressions by their values, and logic with three values: true, false, and not known yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rewards.math.expressions import DIGITS, evaluated
from rewards.math.integration import renamed
from rewards.math.kinds import INFINITY, Kind, Tokens, split
from rewards.math.latex import latex, used
from rewards.math.nodes import Node
from rewards.math.numbers import MP, Number, OutsideError
from rewards.math.operators import function_letters
from rewards.math.samples import Letters, letters_of, samples
from rewards.math.tree import tree

Leaf = Callable[[Tokens, Tokens], bool | None]
"""Compares two expressions: gold first."""
TOLERANCE = MP.mpf(10) ** -6
"""Relative difference up to which a decimal may stand for a value; tighter than any rounding a person does by hand."""
_FEWEST_DIGITS = 6
"""Significant digits that a decimal must show to stand for another number: fewer cannot claim such a tolerance."""
_NOTHING = MP.mpf(10) ** -45
"""Size of an imaginary part that is only what cancelled."""
_FLOAT_NOISE = MP.mpf(10) ** -12
"""Relative error that binary floating point leaves in a gold such as 0.30000000000000004."""
_CERTAIN_BITS = 120
"""Leading bits, half of them behind the point, in which two values agree that are the same; if fewer are known, they
are computed to more digits."""
_LOST_BITS = 16
"""Last bits of a value that rounding may have spoilt."""
_QUADRATURE = MP.mpf(10) ** -20
"""Difference up to which an integral that was computed may still be another value's."""
_MAX_DIGITS = 3000
_BITS_A_DIGIT = 3.33


def exact(gold: Tokens, answer: Tokens) -> bool | None:
    """Compare two expressions by their values; `None` if that takes an algebra system.

    It does only if the gold itself is beyond this reader, or stands for something that is not computed.
    """
    if gold == answer:
        return True
    if len({base for side in (gold, answer) for base in _bases(side)}) > 1:
        return False  # a number was asked for in one base
    allowed = used(gold)
    if not used(answer) <= allowed:
        return False  # an unevaluated integral or sum is a question
    answer = renamed(gold, answer)
    equal = _by_value(gold, answer)
    return False if equal is None and (latex(gold, allowed) is None or latex(answer, allowed) is None) else equal


def _bases(expression: Tokens) -> list[str]:
    """The bases in which its numbers are written, where they say so."""
    return [token.text.partition("_")[2] for token in expression if token.kind is Kind.NUMBER and "_" in token.text]


def _by_value(gold: Tokens, answer: Tokens) -> bool | None:
    cut = [_sides(side) for side in (gold, answer)]
    if len(cut[0]) > 1 or len(cut[1]) > 1:
        return _same_relation(gold, answer, cut)
    ends = infinite(gold), infinite(answer)
    if any(ends):
        return ends[0] == ends[1]
    functions = function_letters((gold, answer))
    nodes = tree(gold, functions), tree(answer, functions)
    if nodes[0] is None or nodes[1] is None:
        return None if nodes[0] is None else False
    letters = letters_of((nodes[0], nodes[1]))
    if not letters:
        values = [_worth(node) for node in nodes if node is not None]
        if values[0] is None or values[1] is None:
            return None if values[0] is None else False
        if any(places_of(side) is not None for side in (gold, answer)):
            return values[0].exact == values[1].exact is not None or _close((values[0], gold), (values[1], answer))
    return same_value(nodes[0], nodes[1], letters)


def _worth(node: Node) -> Number | None:
    """What a constant is worth."""
    try:
        return evaluated(node, {}, DIGITS, real=False)
    except OutsideError:
        return None


def same_value(gold: Node, answer: Node, letters: Letters) -> bool | None:
    """Whether two expressions have one value wherever both have any; `None` if the gold's is not known."""
    if gold == answer:
        return True
    for real in (True, False) if letters and not letters.is_complex else (False,):
        compared = 0
        for values in samples(letters):
            try:
                equal = _agree(gold, answer, values, real)
            except OutsideError:
                continue
            if not equal:
                return equal
            compared += 1
        if compared:
            return True
    return None


def _agree(gold: Node, answer: Node, values: Any, real: bool) -> bool | None:
    """Whether two expressions agree for one set of values.

    Raises:
        OutsideError: one of them has no value there.
    """
    digits = DIGITS
    while True:
        a, b = evaluated(gold, values, digits, real), evaluated(answer, values, digits, real)
        if a is None or b is None:
            return None if a is None else False
        if a.exact is not None and b.exact is not None:
            equal = a.exact == b.exact
        else:
            known, equal = _compared(a, b, digits)
            if not known and digits < _MAX_DIGITS:
                digits = min(_MAX_DIGITS, int(digits + DIGITS + 2 * max(a.size, b.size) / _BITS_A_DIGIT))
                continue
        return equal or (None if _may_agree(a, b) else False)


def _may_agree(gold: Number, answer: Number) -> bool:
    """Whether two values that differ may belong to equal expressions: not everything in them was computed.

    A gold's definite integral was, to many digits, so what is far from it is another value.
    """
    if answer.opaque or (gold.opaque and gold.variables):
        return True
    x, y = gold.about, answer.about
    return gold.opaque and bool(abs(x - y) < _QUADRATURE * max(1, abs(x)))


def _compared(a: Number, b: Number, digits: int) -> tuple[bool, bool]:
    """Whether the digits suffice to tell two values apart, and whether they are equal as far as that can be seen."""
    x, y = a.about, b.about
    noise = max(a.size, b.size) - int(digits * _BITS_A_DIGIT) + _LOST_BITS
    apart = abs(x - y)
    if apart and MP.mag(apart) > noise:
        return True, False
    largest = max(abs(x), abs(y))
    certain = bool(largest) and MP.mag(largest) - noise >= _CERTAIN_BITS and noise <= -_CERTAIN_BITS // 2
    return certain or digits > DIGITS, True


_RELATIONS = frozenset({"=", "<", ">", "<=", ">="})


def _sides(written: Tokens) -> list[Tokens]:
    """The sides of an equation or inequality; the `=` of `\\sum_{k=1}` is none of its own."""
    if not any(token.text in _RELATIONS for token in written):
        return [written]
    return split(written, _RELATIONS)


def _same_relation(gold: Tokens, answer: Tokens, cut: list[list[Tokens]]) -> bool | None:
    """Whether two equations or inequalities are multiples of one another: `y = 2x` and `4x - 2y = 0`."""
    if any(len(sides) != 2 for sides in cut):
        return None if len(cut[0]) == len(cut[1]) else False
    signs = [written[len(sides[0])].text for written, sides in zip((gold, answer), cut, strict=True)]
    for n, sign in enumerate(signs):
        if sign.startswith(">"):
            cut[n], signs[n] = cut[n][::-1], sign.replace(">", "<")
    if signs[0] != signs[1]:
        return False
    functions = function_letters((gold, answer))
    nodes = [tree(side, functions) for sides in cut for side in sides]
    if any(node is None for node in nodes[:2]):
        return _side_by_side(cut)
    if any(node is None for node in nodes):
        return False
    return _multiples([node for node in nodes if node is not None], signs[0])


def _side_by_side(cut: list[list[Tokens]]) -> bool | None:
    """Relations that cannot be evaluated: their sides are compared one by one."""
    return every(exact(gold, answer) for gold, answer in zip(*cut, strict=True))


def _multiples(nodes: list[Node], sign: str) -> bool | None:
    """Whether the differences of two relations' sides are in one ratio, positive for inequalities."""
    letters = letters_of(tuple(nodes))
    if not letters:
        return False
    for real in (True, False) if not letters.is_complex else (False,):
        ratios: list[Any] = []
        for values in samples(letters):
            try:
                ratio = _ratio(nodes, values, real)
            except OutsideError:
                continue
            if ratio is None:
                return None
            if not ratio:
                return False
            ratios.append(ratio)
        if ratios:
            constant = all(equal_values(ratio, ratios[0]) for ratio in ratios)
            return constant and (sign == "=" or bool(ratios[0].real > 0 and equal_values(ratios[0], ratios[0].real)))
    return False


def _ratio(nodes: list[Node], values: Any, real: bool) -> Any:
    """The ratio of the two differences; 0 if one of them vanishes, `None` if one has no value."""
    g, h, a, b = (evaluated(node, values, 2 * DIGITS, real) for node in nodes)
    if g is None or h is None:
        return None
    if a is None or b is None:
        return 0
    below, above = (g.about - h.about), (a.about - b.about)
    if equal_values(g.about, h.about) or equal_values(a.about, b.about):
        return 0
    return above / below


_SAME = MP.mpf(10) ** -40


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
