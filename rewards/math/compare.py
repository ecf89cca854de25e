"""Whether two answers say the same: `True`, `False`, or `None` where that takes algebra.

One walk over two shapes serves both stages. In the trainer's process leaves are compared by `exact`, which knows
rationals and recognises numbers that differ; in the pool they are compared by `rewards.math.symbolic`. The policy:

* values must be equal exactly, however they are written; a decimal may stand for another number only if it agrees to
  one part in a million and in all its digits (`0.333333` is 1/3, `0.33` is not, `3.14` is not pi);
* a unit counts if both sides have one (after conversion); one that only one side states is taken as understood;
* bare lists and sets are unordered, points and vectors ordered, brackets of intervals matter;
* a list in place of one value, a chain of equalities that is false, and words around a number are wrong answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from rewards.math.latex import latex, used
from rewards.math.numbers import MP, SAMPLES, Number, evaluate
from rewards.math.shapes import (
    INFINITY,
    Approximate,
    Chain,
    Group,
    Interval,
    Matrix,
    Named,
    Nonsense,
    Quantity,
    Relation,
    Shape,
    Union,
    Words,
    fraction_tokens,
    read,
    split,
)
from rewards.math.tokens import Kind, Token, Tokens, tokens
from rewards.math.units import DEGREE, PERCENT, RADIAN, Unit

Leaf = Callable[[Tokens, Tokens], bool | None]
"""Compares two expressions: gold first."""

TOLERANCE = MP.mpf(10) ** -6
"""Relative difference up to which a decimal may stand for a value; tighter than any rounding a person does by hand."""
_ROUGH = 0.01
"""Relative difference up to which `A \\approx B` is not a contradiction."""
_SAME = MP.mpf(10) ** -40
"""Relative difference between two ways to compute one value to fifty digits."""
_NOTHING = MP.mpf(10) ** -45
"""What is left where two equal terms cancel."""
_FLOAT_NOISE = MP.mpf(10) ** -12
"""Relative error that binary floating point leaves in a gold such as 0.30000000000000004."""

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = dict(zip(_SMALL.split(), range(20), strict=True)) | dict(
    zip(_TENS.split(), range(20, 100, 10), strict=True)
)
_SYNONYMS = {
    **dict.fromkeys(
        ["none", "no solutions", "no real solutions", "no real solution", "empty set", "no answer"], "no solution"
    ),
    **dict.fromkeys(["dne", "doesn't exist", "not exist"], "does not exist"),
    **dict.fromkeys(["infinite", "infinity"], "infinitely many"),
}


def shape_of(text: str) -> Shape:
    """Read an answer. Dollar signs in pairs delimit mathematics and are dropped; an odd one is money.

    Raises:
        TooDeepError: the text nests brackets deeper than anything that is read.
    """
    if (text.count("$") - text.count(r"\$")) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)
    return read(tokens(text))


def same(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Whether the answer says what the gold says, by the policy above.

    Raises:
        TooBigError: a number in it is made to keep computers busy.
    """
    if gold == answer:
        return True
    if isinstance(answer, Approximate):
        return _approximate(gold, answer, leaf)
    if isinstance(gold, Approximate):
        return same(gold.parts[0], answer, leaf)
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _named(gold, answer, leaf)
    if isinstance(gold, Chain) or isinstance(answer, Chain):
        return _chains(gold, answer, leaf)
    if isinstance(gold, Interval | Union) or isinstance(answer, Interval | Union):
        return _ranges(gold, answer, leaf)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _words(gold, answer, leaf)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _matrices(gold, answer, leaf)
    if isinstance(gold, Group) or isinstance(answer, Group):
        return _groups(gold, answer, leaf)
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        return _quantities(gold, answer, leaf)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return leaf(gold.written, answer.written)
    return False


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
    ends = _infinite(gold), _infinite(answer)
    if any(ends):
        return ends[0] == ends[1]
    for sample in range(SAMPLES):
        a, b = evaluate(gold, sample), evaluate(answer, sample)
        if a is None or b is None:
            return None
        if a.exact is not None and a.exact == b.exact:
            return True
        if not a.variables and not b.variables:
            places = _places(gold), _places(answer)
            return _close(a, b, places) if places != (None, None) else equal_values(a.about, b.about)
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


def _places(expression: Tokens) -> int | None:
    """How many decimals a decimal number has; `None` for what is no decimal number."""
    core = expression[1:] if expression[0].text in "+-" else expression
    mantissa = core[0].text if core and core[0].kind is Kind.NUMBER else ""
    if "." not in mantissa or "(" in mantissa or "..." in mantissa or len(core) > 1:
        return None
    digits, _, exponent = mantissa.partition("e")
    return len(digits.partition(".")[2].rstrip("0")) - int(exponent or 0)


def _close(a: Number, b: Number, places: tuple[int | None, int | None]) -> bool:
    """Whether a decimal stands for the other value: to one part in a million, and in every digit that it shows."""
    x, y = a.about, b.about
    if abs(x.imag) > _NOTHING or abs(y.imag) > _NOTHING or places[0] == places[1] or x == 0 or y == 0:
        return False
    apart = abs(x - y) / max(abs(x), abs(y))
    if apart <= _FLOAT_NOISE:
        return True
    if any(n.exact is not None and n.exact.denominator == 1 for n in (a, b)):
        return False
    last_digit = MP.mpf(10) ** -min(p for p in places if p is not None)
    return bool(abs(x - y) <= last_digit and apart <= TOLERANCE)


def _infinite(expression: Tokens) -> int:
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


def _quantities(gold: Quantity, answer: Quantity, leaf: Leaf) -> bool | None:
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


def _words(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Words against words, or a number in words against a number."""
    if isinstance(gold, Words) and isinstance(answer, Words):
        if _canonical(gold) == _canonical(answer):
            return True
        numbers = _spelled(gold), _spelled(answer)
        return numbers[0] is not None and numbers[0] == numbers[1]
    words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    assert isinstance(words, Words)
    number = _spelled(words)
    if number is not None and isinstance(other, Quantity):
        return leaf(fraction_tokens(Fraction(number)), other.value)
    if isinstance(other, Quantity) and len(other.written) == 1:  # \text{x} and x
        return len(words.words) == 1 and words.words[0] == other.written[0].text.lower()
    if isinstance(other, Quantity) and _canonical(words) == "infinitely many":
        return _infinite(other.written) == 1
    return False


def _canonical(words: Words) -> str:
    text = " ".join(words.words)
    for beginning in ("it is ", "there is ", "there are "):
        text = text.removeprefix(beginning)
    return _SYNONYMS.get(text, text)


def _spelled(words: Words) -> int | None:
    """The number that words spell: `twenty five` is 25."""
    total = 0
    for n, word in enumerate(words.words):
        value = _NUMBER_WORDS.get(word)
        if value is None or (n == 1 and not (20 <= total <= 90 and value < 10)) or n > 1:
            return None
        total += value
    return total


def _named(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """`x = 3` against `3`, against `x = 3`, and against the equation `x - 3 = 0`."""
    if isinstance(gold, Named) and isinstance(answer, Named):
        if gold.name != answer.name and not (_is_phrase(gold.name) or _is_phrase(answer.name)):
            flipped = [_equation(shape) for shape in (gold, answer)]
            return leaf(flipped[0], flipped[1]) if None not in flipped and _mentions(answer, gold) else False  # type: ignore[arg-type]
        return every([_consistent(answer.values, leaf), same(gold.values[-1], answer.values[-1], leaf)])
    if isinstance(answer, Named):
        if isinstance(gold, Chain):
            equation = _equation(answer)
            return False if equation is None else leaf(_joined(gold.sides), equation)
        value = answer.values[-1]
        if isinstance(gold, Interval | Union) and not isinstance(value, Interval | Union | Group):
            return False
        return every([_consistent(answer.values, leaf), same(gold, value, leaf)])
    assert isinstance(gold, Named)
    if isinstance(answer, Chain):
        equation = _equation(gold)
        if equation is not None and any(t.kind is Kind.SYMBOL for side in answer.sides for t in side):
            return leaf(equation, _joined(answer.sides))
    if isinstance(answer, Interval | Union):
        return same(gold.values[-1], answer, leaf)
    return same(gold.values[-1], answer, leaf)


def _is_phrase(name: Tokens) -> bool:
    return any(token.kind is Kind.TEXT or (token.kind is Kind.WORD and len(token.text) > 3) for token in name)


def _mentions(answer: Named, gold: Named) -> bool:
    """Whether both names occur on both sides, so that one equation may be the other rearranged."""
    both = [{t.text for t in (*n.name, *_written(n.values[0])) if t.kind is Kind.SYMBOL} for n in (answer, gold)]
    return both[0] == both[1] and len(both[0]) > 1


def _written(shape: Shape) -> Tokens:
    return shape.written if isinstance(shape, Quantity | Relation | Nonsense) else ()


def _equation(shape: Named) -> Tokens | None:
    value = shape.values[0]
    if len(shape.values) != 1 or not isinstance(value, Quantity):
        return None
    return _joined((shape.name, value.written))


_EQUALS = Token(Kind.OPERATOR, "=")


def _joined(sides: Sequence[Tokens]) -> Tokens:
    """The sides of an equation as one run of tokens."""
    result: Tokens = sides[0]
    for side in sides[1:]:
        result = (*result, _EQUALS, *side)
    return result


def _consistent(values: Sequence[Shape], leaf: Leaf) -> bool | None:
    """Whether an equality chain does not contradict itself."""
    return every(same(a, b, leaf) for a, b in pairwise(values))


def _chains(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Equations, and calculations such as `2 + 3 = 5`."""
    if isinstance(gold, Chain) and isinstance(answer, Chain) and _has_variables(gold):
        if len(gold.sides) == len(answer.sides) == 2:
            return leaf(_joined(gold.sides), _joined(answer.sides))
        return False
    if isinstance(answer, Chain):
        if _has_variables(answer) and not isinstance(gold, Quantity):
            return False
        values = [read(side, 1) for side in answer.sides]
        goal = read(gold.sides[-1], 1) if isinstance(gold, Chain) else gold
        return every([_consistent(values, leaf), same(goal, values[-1], leaf)])
    assert isinstance(gold, Chain)
    if _has_variables(gold):
        return False
    return some(same(read(side, 1), answer, leaf) for side in gold.sides)


def _has_variables(chain: Chain) -> bool:
    return any(
        (t.kind is Kind.SYMBOL and t.text not in ("e", "i")) or t.kind is Kind.WORD for s in chain.sides for t in s
    )


def _approximate(gold: Shape, answer: Approximate, leaf: Leaf) -> bool | None:
    r"""`2\sqrt{5} \approx 4.47`: the first part is the answer, or the last if the gold is a decimal."""
    values = [evaluate(part.value) if isinstance(part, Quantity) else None for part in answer.parts]
    for value in values:
        if value is None or values[0] is None or abs(value.about - values[0].about) > _ROUGH * abs(values[0].about):
            return False
    decimal = isinstance(gold, Quantity) and _places(gold.value) is not None
    return some(same(gold, part, leaf) for part in (answer.parts if decimal else answer.parts[:1]))


def _groups(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _two_groups(gold, answer, leaf)
    if isinstance(answer, Group):
        if isinstance(gold, Quantity) and (comma := _decimal_comma(answer)) is not None:
            return leaf(gold.value, comma)
        if answer.brackets in ("{}", "[]") and len(answer.items) == 1:
            return same(gold, answer.items[0], leaf)
        return False
    assert isinstance(gold, Group)
    if gold.brackets in ("{}", "[]") and len(gold.items) == 1:
        return same(gold.items[0], answer, leaf)
    return False


def _decimal_comma(answer: Group) -> Tokens | None:
    """`3,5` read as 3.5, as much of the world writes it."""
    if answer.brackets or len(answer.items) != 2:
        return None
    parts = [item.written for item in answer.items if isinstance(item, Quantity)]
    if len(parts) != 2 or len(parts[1]) != 1 or parts[1][0].spaced or not parts[1][0].text.isdigit():
        return None
    *sign, whole = parts[0]
    if not whole.text.isdigit() or [t.text for t in sign] not in ([], ["-"]):
        return None
    return (*sign, Token(Kind.NUMBER, f"{whole.text}.{parts[1][0].text}"))


def _two_groups(gold: Group, answer: Group, leaf: Leaf) -> bool | None:
    if len(gold.items) != len(answer.items):
        return False
    if _ordered(gold):
        if answer.brackets == "{}" or not _brackets_agree(gold, answer):
            return False
        return every(same(g, a, leaf) for g, a in zip(gold.items, answer.items, strict=True))
    if _ordered(answer):
        return False
    if not gold.brackets and all(isinstance(i, Words) and len(i.words[0]) > 1 for i in gold.items):
        return every(same(g, a, leaf) for g, a in zip(gold.items, answer.items, strict=True))
    if any(isinstance(item, Named) for item in (*gold.items, *answer.items)):
        return _assignments(gold, answer, leaf)
    return _unordered(gold.items, answer.items, lambda g, a: same(g, a, leaf))


def _ordered(group: Group) -> bool:
    return group.brackets not in ("", "{}")


def _brackets_agree(gold: Group, answer: Group) -> bool:
    """Brackets matter where they may be the ends of an interval; else `(1, 2, 3)`, `[1, 2, 3]` and `1, 2, 3` agree."""
    if gold.brackets == answer.brackets:
        return True
    if "<>" in (gold.brackets, answer.brackets):
        return {gold.brackets, answer.brackets} <= {"<>", "()", "[]"}
    if not answer.brackets:
        return gold.brackets == "()"
    if {gold.brackets, answer.brackets} != {"()", "[]"}:
        return False
    return len(gold.items) != 2 or not _may_be_interval(gold)


def _may_be_interval(group: Group) -> bool:
    ends = [evaluate(item.value) if isinstance(item, Quantity) else None for item in group.items]
    if ends[0] is None or ends[1] is None:
        return True
    return bool(ends[0].about.real < ends[1].about.real)


def _assignments(gold: Group, answer: Group, leaf: Leaf) -> bool | None:
    """`x = 1, y = 2` in any order of its parts, or as bare values in that order."""
    if all(isinstance(item, Named) for item in gold.items):
        if all(isinstance(item, Named) for item in answer.items):
            return _unordered(gold.items, answer.items, lambda g, a: same(g, a, leaf))
        if any(isinstance(item, Named) for item in answer.items):
            return False
        return every(same(g, a, leaf) for g, a in zip(gold.items, answer.items, strict=True))
    return every(same(g, a, leaf) for g, a in zip(gold.items, answer.items, strict=True))


def _unordered(
    gold: Sequence[Shape], answer: Sequence[Shape], equal: Callable[[Shape, Shape], bool | None]
) -> bool | None:
    """Whether the two match one to one. Equality is an equivalence, so the first match found is as good as any."""
    if len(gold) != len(answer):
        return False
    left, unknown = list(answer), False
    for item in gold:
        results = []
        for position, candidate in enumerate(left):
            results.append(equal(item, candidate))
            if results[-1]:
                del left[position]
                break
        else:
            if None not in results:
                return False
            unknown = True
    return None if unknown else True


def _as_interval(shape: Shape) -> Interval | None:
    if isinstance(shape, Interval):
        return shape
    if isinstance(shape, Group) and len(shape.items) == 2 and shape.brackets in ("()", "[]", "(]", "[)"):
        return Interval((shape.items[0], shape.items[1]), shape.brackets)
    return None


def _ranges(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Intervals and their unions, however written."""
    variables = [shape.variable for shape in (gold, answer) if isinstance(shape, Interval | Union) and shape.variable]
    if len(variables) == 2 and variables[0] != variables[1]:
        return False
    if isinstance(gold, Union) or isinstance(answer, Union):
        parts = [shape.parts if isinstance(shape, Union) else (shape,) for shape in (gold, answer)]
        return _unordered(parts[0], parts[1], lambda g, a: same(_anonymous(g), _anonymous(a), leaf))
    a, b = _as_interval(gold), _as_interval(answer)
    if a is None or b is None:
        return False
    return every([a.brackets == b.brackets, *(same(g, h, leaf) for g, h in zip(a.ends, b.ends, strict=True))])


def _anonymous(shape: Shape) -> Shape:
    return Interval(shape.ends, shape.brackets) if isinstance(shape, Interval) else shape


def _matrices(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        if (len(gold.rows), len(gold.rows[0])) != (len(answer.rows), len(answer.rows[0])):
            return False
        pairs = zip(_cells(gold), _cells(answer), strict=True)
        return every(same(g, a, leaf) for g, a in pairs)
    matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    assert isinstance(matrix, Matrix)
    cells = _cells(matrix)
    if (
        isinstance(other, Group)
        and other.brackets in ("()", "<>", "[]")
        and 1 in (len(matrix.rows), len(matrix.rows[0]))
    ):
        rows = other.items
        if len(rows) != len(cells):
            return False
        return every(same(*((c, r) if matrix is gold else (r, c)), leaf) for c, r in zip(cells, rows, strict=True))
    if isinstance(other, Group) and all(isinstance(row, Group) and row.brackets == "[]" for row in other.items):
        flat = [item for row in other.items if isinstance(row, Group) for item in row.items]
        lengths = {len(row.items) for row in other.items if isinstance(row, Group)}
        if len(other.items) != len(matrix.rows) or lengths != {len(matrix.rows[0])}:
            return False
        return every(same(*((c, r) if matrix is gold else (r, c)), leaf) for c, r in zip(cells, flat, strict=True))
    return False


def _cells(matrix: Matrix) -> list[Shape]:
    return [cell for row in matrix.rows for cell in row]


_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?[\[(]?\s*([A-Ja-j])\s*(?:([)\].:])\s*(.*))?", re.IGNORECASE | re.DOTALL
)
_HEDGE = re.compile(r"\b(?:or|and|not|nor|wrong|incorrect|either|neither)\b|\(?\b[A-J]\b\)", re.IGNORECASE)


def choice(text: str) -> str | None:
    r"""The letter of a multiple-choice answer: `C`, `(C)`, `\text{(C)}`, `\textbf{(C)}\ 12`, `C) 12`; else `None`."""
    flat = (
        re.sub(r"\\(?:text|textbf|mathrm|mathbf|textit|boxed)\s*|\\[ ,;!]|[{}$*~]|\\quad|\\qquad", " ", text)
        .strip()
        .rstrip(".")
    )
    found = _CHOICE.fullmatch(flat.strip())
    if found is None or (found[3] and _HEDGE.search(found[3])) or len(flat) > 200:
        return None
    return found[1].upper()
