r"""Equations, calculations such as `2 + 3 = 5`, values that are named by what was asked for, and approximations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rewards.math.expressions import evaluate
from rewards.math.kinds import Kind, Token, Tokens
from rewards.math.latex import UNEVALUATED
from rewards.math.names import denies
from rewards.math.notation import words
from rewards.math.numbers import MP
from rewards.math.operators import function_letters
from rewards.math.read import read
from rewards.math.regions import Same
from rewards.math.shapes import Approximate, Chain, Named, Quantity, Shape
from rewards.math.values import Leaf, every, places_of, some

_ROUGH = 0.01
"""Relative difference up to which `A \\approx B` is no contradiction, where B shows no digits to round to."""
_EQUALS = Token(Kind.OPERATOR, "=")
_SUBJECTS = UNEVALUATED | words(r"\max \min \angle \triangle \overline \gcd")


def joined(sides: Sequence[Tokens]) -> Tokens:
    """The sides of an equation as one run of tokens."""
    result: Tokens = sides[0]
    for side in sides[1:]:
        result = (*result, _EQUALS, *side)
    return result


def equation(shape: Named) -> Tokens | None:
    """`x = 3` as an equation; `None` if its value is no single expression."""
    value = shape.values[0]
    if len(shape.values) != 1 or not isinstance(value, Quantity):
        return None
    return joined((shape.name, value.written))


def consistent(values: Sequence[Shape], same: Same, leaf: Leaf) -> bool | None:
    """Whether an equality chain does not contradict itself."""
    return every(same(a, b, leaf) for a, b in pairwise(values))


def chains(gold: Shape, answer: Shape, same: Same, leaf: Leaf) -> bool | None:
    """Whether an equation or a calculation says what the gold says, one of which is such a chain of sides."""
    if isinstance(gold, Chain) and isinstance(answer, Chain) and _is_open_chain(gold) and not _asks(gold):
        two = len(gold.sides) == len(answer.sides) == 2
        return leaf(joined(gold.sides), joined(answer.sides)) if two else False
    if isinstance(answer, Chain):
        goal = read(gold.sides[-1], 1) if isinstance(gold, Chain) else gold
        if isinstance(goal, Quantity) and not is_open(goal.written):
            sides = _claims(answer)
        else:
            sides = answer.sides if isinstance(goal, Quantity) or not _is_open_chain(answer) else ()
        values = [read(side, 1) for side in sides]
        return every([consistent(values, same, leaf), same(goal, values[-1], leaf)]) if values else False
    assert isinstance(gold, Chain)
    if _asks(gold):
        return same(read(gold.sides[-1], 1), answer, leaf)
    if _is_open_chain(gold):
        return False
    return some(same(read(side, 1), answer, leaf) for side in gold.sides)


def is_open(side: Tokens) -> bool:
    """Whether the value of a side is not said by itself: it has variables, or stands for something not computed."""
    value = evaluate(side)
    if value is None:
        return any(t.kind in (Kind.SYMBOL, Kind.WORD) or t.text in _SUBJECTS for t in side)
    return value.variables


def _is_open_chain(chain: Chain) -> bool:
    return any(is_open(side) for side in chain.sides)


def _asks(gold: Chain) -> bool:
    r"""Whether a gold names what was asked for and its value: `\lim_{x \to 0} f(x) = 3`."""
    first, last = gold.sides[0], gold.sides[-1]
    return is_open(first) and not is_open(last) and any(token.text in _SUBJECTS for token in first)


def _claims(answer: Chain) -> Sequence[Tokens]:
    r"""The sides of an answer that have values of their own, behind those that only say what was asked for.

    `f(2) = 2 + 3 = 5` and `\frac{AB}{CD} = 5` do, `2x = 5` is an equation yet to be solved.
    """
    start = 0
    while start < len(answer.sides) and is_open(answer.sides[start]):
        if not _is_subject(answer.sides[start]):
            return ()
        start += 1
    return answer.sides[start:]


def _is_subject(side: Tokens) -> bool:
    """Whether a side may be what was asked for: a function's value, a limit, or several letters without numbers."""
    if any(token.text in _SUBJECTS for token in side) or function_letters((side,)):
        return True
    if any(denies(token) for token in side):
        return False
    letters, depth = set(), 0
    for before, token in pairwise((_EQUALS, *side)):
        if token.kind in (Kind.SYMBOL, Kind.WORD):
            letters.add(token.text)
        depth += (before.text == "^") - (depth > 0 and token.text == "}")
        if token.kind is Kind.NUMBER and not depth:
            return False
    if [token.text for token in side] in (["|", "z", "|"], ["|", "w", "|"]):
        return True  # complex numbers by custom
    whole = any(len(letter) > 1 and letter[0].isupper() for letter in letters)
    return len(letters) > 1 or whole


def approximate(gold: Shape, answer: Approximate, same: Same, leaf: Leaf) -> bool | None:
    r"""`2\sqrt{5} \approx 4.47`: the first part is the answer, or the last if the gold is a decimal."""
    parts = [part.values[-1] if isinstance(part, Named) else part for part in answer.parts]
    if not all(_rounds(a, b) for a, b in pairwise(parts)):
        return False
    decimal = isinstance(gold, Quantity) and places_of(gold.value) is not None
    return some(same(gold, part, leaf) for part in (answer.parts if decimal else answer.parts[:1]))


def _rounds(exact: Shape, rounded: Shape) -> bool:
    """Whether the second is the first, rounded or cut off at its last digit; roughly equal if it shows no digits."""
    values = [evaluate(shape.value) if isinstance(shape, Quantity) else None for shape in (exact, rounded)]
    if values[0] is None or values[1] is None or not isinstance(rounded, Quantity):
        return False
    a, b = (value.about for value in values if value is not None)
    if a.imag or b.imag:
        return False
    whole = values[1].exact is not None and values[1].exact.denominator == 1
    places = 0 if whole else places_of(rounded.value)
    if places is None or places < 0:
        return bool(abs(a - b) <= _ROUGH * abs(a))
    unit = MP.mpf(10) ** -places
    cut_off = abs(b) <= abs(a) < abs(b) + unit and a * b >= 0
    return bool(cut_off or abs(a - b) <= unit / 2 * (1 + MP.mpf(10) ** -9))
