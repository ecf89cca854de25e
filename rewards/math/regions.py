r"""Sets of real numbers: intervals, inequalities, unions and intersections, however written.

`x > 1 \text{ and } x < 3`, `1 < x < 3`, `(1, 3)` and `]1,3[` are the same set; so are `[0,1] \cup [1,2]` and `[0,2]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from rewards.math.expressions import evaluate
from rewards.math.kinds import CLOSING, INFINITY, OPENING, Kind, Token, Tokens
from rewards.math.names import is_name
from rewards.math.numbers import MP
from rewards.math.shapes import Group, Interval, Quantity, Shape, Union, Words
from rewards.math.values import Leaf, equal_values, every, infinite

Read = Callable[[Tokens, int], Shape]
"""Reads tokens within so many brackets."""
Same = Callable[[Shape, Shape, Leaf], bool | None]
"""Compares two shapes: gold first."""

_MINUS = Token(Kind.OPERATOR, "-")
_OPEN, _CLOSE = Token(Kind.OPERATOR, "("), Token(Kind.OPERATOR, ")")
LOW = Quantity((_MINUS, INFINITY), None, (_MINUS, INFINITY))
HIGH = Quantity((INFINITY,), None, (INFINITY,))
REAL_LINE = Interval((LOW, HIGH), "()")
NOTHING = Words(("no", "solution"))
INEQUALITIES = frozenset({"<", ">", "<=", ">="})


def inequality(sides: list[Tokens], relations: list[str], read: Read, depth: int) -> Shape | None:
    """`x > 3`, `1 < x \\le 2` as intervals."""
    turned = all(r in (">", ">=") for r in relations)
    if turned:
        sides, relations = sides[::-1], [r.replace(">", "<") for r in relations[::-1]]
    if not all(r in ("<", "<=") for r in relations):
        return None
    if len(sides) == 2 and "|" in (sides[0][0].text, sides[1][0].text):
        return _around_zero(sides, relations[0], read, depth)
    ends: tuple[Shape, Shape]
    if len(sides) == 2 and is_name(sides[0]) and not (turned and is_name(sides[1])):
        ends, brackets, variable = (LOW, read(sides[1], depth + 1)), "(" + _close(relations[0]), sides[0]
    elif len(sides) == 2 and is_name(sides[1]):
        ends, brackets, variable = (read(sides[0], depth + 1), HIGH), _open(relations[0]) + ")", sides[1]
    elif len(sides) == 3 and is_name(sides[1]):
        ends = (read(sides[0], depth + 1), read(sides[2], depth + 1))
        brackets, variable = _open(relations[0]) + _close(relations[1]), sides[1]
    else:
        return None
    signs = [Token(Kind.OPERATOR, relation) for relation in relations]
    written = tuple(token for side, sign in zip(sides, [*signs, None], strict=True) for token in _with(side, sign))
    return Interval(ends, brackets, variable, written)


def _around_zero(sides: list[Tokens], relation: str, read: Read, depth: int) -> Shape | None:
    """`|x| < 3` is an interval around zero, `3 < |x|` what lies outside of it, `|x - 1| < 3` one around one."""
    inside = sides[0][0].text == "|"
    absolute, bound = sides if inside else sides[::-1]
    if len(absolute) < 3 or absolute[1].kind is not Kind.SYMBOL or absolute[-1].text != "|":
        return None
    variable, shift = absolute[1:2], absolute[2:-1]
    if shift and (shift[0].text not in ("+", "-") or any(t.kind is Kind.SYMBOL or t.text == "|" for t in shift)):
        return None
    middle = (_MINUS, _OPEN, *shift, _CLOSE) if shift else ()
    ends = (
        read((*middle, _MINUS, _OPEN, *bound, _CLOSE), depth + 1),
        read((*middle, Token(Kind.OPERATOR, "+"), _OPEN, *bound, _CLOSE) if shift else bound, depth + 1),
    )
    if inside:
        return Interval(ends, _open(relation) + _close(relation), variable)
    left, right = Interval((LOW, ends[0]), "(" + _close(relation)), Interval((ends[1], HIGH), _open(relation) + ")")
    return Union((left, right), variable)


def _with(side: Tokens, sign: Token | None) -> Tokens:
    return side if sign is None else (*side, sign)


def _open(relation: str) -> str:
    return "(" if relation == "<" else "["


def _close(relation: str) -> str:
    return ")" if relation == "<" else "]"


def without(variable: Tokens | None, removed: Sequence[Shape]) -> Union:
    """The real line without some points."""
    points = [point for shape in removed for point in (shape.items if isinstance(shape, Group) else (shape,))]
    keys = [_key(point) for point in points]
    if all(key is not None for key in keys):
        points = [point for _, point in sorted(zip(keys, points, strict=True), key=lambda pair: pair[0])]
    ends = [LOW, *points, HIGH]
    return Union(tuple(Interval((a, b), "()") for a, b in pairwise(ends)), variable)


def iso_brackets(written: Tokens) -> Tokens | None:
    """`]0,1[` with the brackets of `(0,1)`; `None` if no bracket is turned around."""
    brackets = [position for position, token in enumerate(written) if token.text in ("[", "]")]
    if not brackets:
        return None
    depth = lowest = 0
    for token in written:
        depth += (token.text in OPENING) - (token.text in CLOSING)
        lowest = min(depth, lowest)
    if depth == lowest == 0:
        return None
    turned = {position: written[position].text == "]" for position in brackets[::2]}
    turned |= {position: written[position].text == "[" for position in brackets[1::2]}
    if len(brackets) % 2 or not any(turned.values()):
        return None
    text = list(written)
    for number, position in enumerate(brackets):
        if turned[position]:
            text[position] = _CLOSE if number % 2 else _OPEN
    return tuple(text)


def as_interval(shape: Shape) -> Interval | None:
    """A pair in brackets, taken for an interval."""
    if isinstance(shape, Interval):
        return shape
    if isinstance(shape, Group) and len(shape.items) == 2 and shape.brackets in ("()", "[]", "(]", "[)"):
        return Interval((shape.items[0], shape.items[1]), shape.brackets)
    return None


def union(ranges: Sequence[Shape], variable: Tokens | None) -> Union:
    """All that is in any of them."""
    flat: list[Shape] = []
    for part in ranges:
        flat += part.parts if isinstance(part, Union) else [part]
    return Union(tuple(flat), variable)


def both(ranges: Sequence[Shape], variable: Tokens | None) -> Shape | None:
    """What is in all of them; `None` if their ends cannot be put in order."""
    rays = [shape for shape in ranges if isinstance(shape, Interval)]
    if len(rays) == len(ranges) == 2:
        low, high = sorted(rays, key=lambda ray: ray.ends[0] == LOW)
        if low.ends[1] == HIGH and high.ends[0] == LOW and low.ends[0] != LOW and high.ends[1] != HIGH:
            keys = _key(low.ends[0]), _key(high.ends[1])
            if None in keys or keys[0] < keys[1]:
                return Interval((low.ends[0], high.ends[1]), low.brackets[0] + high.brackets[1], variable)
    spans = [_spans(shape) for shape in ranges]
    result = spans[0]
    for other in spans[1:]:
        if result is None or other is None:
            return None
        result = [met for a in result for b in other if (met := _meet(a, b)) is not None]
    if result is None:
        return None
    if len(result) == 1:
        return Interval(result[0].ends, result[0].brackets, variable)
    return Union(tuple(result), variable) if result else NOTHING


def same_ranges(gold: Shape, answer: Shape, same: Same, leaf: Leaf) -> bool | None:
    """Whether two sets of real numbers are the same; those without numbers for ends are compared part by part."""
    variables = [shape.variable for shape in (gold, answer) if isinstance(shape, Interval | Union) and shape.variable]
    if len(variables) == 2 and variables[0] != variables[1]:
        return False
    wanted, given = _merged(gold), _merged(answer)
    if wanted is not None and given is not None:
        if len(wanted) != len(given):
            return False
        return every(_same_interval(g, a, same, leaf) for g, a in zip(wanted, given, strict=True))
    if isinstance(gold, Union) or isinstance(answer, Union):
        parts: list[list[Shape]] = [list(s.parts) if isinstance(s, Union) else [s] for s in (gold, answer)]
        return _one_to_one(parts[0], parts[1], lambda g, a: same(_anonymous(g), _anonymous(a), leaf))
    a, b = as_interval(gold), as_interval(answer)
    return False if a is None or b is None else _same_interval(a, b, same, leaf)


def _same_interval(gold: Interval, answer: Interval, same: Same, leaf: Leaf) -> bool | None:
    ends = (same(g, a, leaf) for g, a in zip(gold.ends, answer.ends, strict=True))
    return every([gold.brackets == answer.brackets, *ends])


def _anonymous(shape: Shape) -> Shape:
    return Interval(shape.ends, shape.brackets) if isinstance(shape, Interval) else shape


def _one_to_one(gold: list[Shape], answer: list[Shape], equal: Callable[[Shape, Shape], bool | None]) -> bool | None:
    if len(gold) != len(answer):
        return False
    for item in gold:
        match = next((candidate for candidate in answer if equal(item, candidate)), None)
        if match is None:
            return False
        answer.remove(match)
    return True


def _spans(shape: Shape) -> list[Interval] | None:
    """The intervals that a set consists of, points included; `None` if an end is no number."""
    if isinstance(shape, Union):
        found: list[Interval] = []
        for part in shape.parts:
            spans = _spans(part)
            if spans is None:
                return None
            found += spans
        return found
    if isinstance(shape, Group) and shape.brackets == "{}":
        points = [Interval((item, item), "[]") for item in shape.items]
        return points if all(_key(item) is not None for item in shape.items) else None
    if shape == NOTHING:
        return []
    interval = as_interval(shape)
    if interval is None or any(_key(end) is None for end in interval.ends):
        return None
    return [Interval(interval.ends, interval.brackets)]


def _key(end: Shape) -> Any:
    """Where an end of an interval lies on the real line; `None` for what is no real number."""
    if not isinstance(end, Quantity):
        return None
    if sign := infinite(end.written):
        return sign * MP.inf
    value = evaluate(end.value)
    if value is None or value.variables:
        return None
    about = value.about
    return None if isinstance(about, MP.mpc) or about.imag else MP.mpf(about)


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) or (MP.isfinite(a) and MP.isfinite(b) and equal_values(a, b))


def _meet(a: Interval, b: Interval) -> Interval | None:
    """What two intervals have in common."""
    (low, opened), (high, closed) = (a.ends[0], a.brackets[0]), (a.ends[1], a.brackets[1])
    if _equal(_key(low), _key(b.ends[0])):
        opened = "(" if "(" in (opened, b.brackets[0]) else "["
    elif _key(b.ends[0]) > _key(low):
        low, opened = b.ends[0], b.brackets[0]
    if _equal(_key(high), _key(b.ends[1])):
        closed = ")" if ")" in (closed, b.brackets[1]) else "]"
    elif _key(b.ends[1]) < _key(high):
        high, closed = b.ends[1], b.brackets[1]
    one_point = _equal(_key(low), _key(high)) and opened + closed == "[]"
    return Interval((low, high), opened + closed) if one_point or _key(low) < _key(high) else None


def _merged(shape: Shape) -> list[Interval] | None:
    """The intervals of a set in order, those that touch put together; `None` if an end is no number."""
    spans = _spans(shape)
    if spans is None:
        return None
    result: list[Interval] = []
    for span in sorted(spans, key=lambda one: (_key(one.ends[0]), one.brackets[0] == "(")):
        if result and _touch(result[-1], span):
            before = result.pop()
            ends = _key(before.ends[1]), _key(span.ends[1])
            if _equal(*ends):
                high, closed = before.ends[1], "]" if "]" in (before.brackets[1], span.brackets[1]) else ")"
            else:
                longer = before if ends[0] > ends[1] else span
                high, closed = longer.ends[1], longer.brackets[1]
            span = Interval((before.ends[0], high), before.brackets[0] + closed)
        result.append(span)
    return result


def _touch(left: Interval, right: Interval) -> bool:
    """Whether two intervals, the first of which begins first, leave no gap between them."""
    end, start = _key(left.ends[1]), _key(right.ends[0])
    return bool(start < end) or (_equal(start, end) and left.brackets[1] + right.brackets[0] != ")(")
