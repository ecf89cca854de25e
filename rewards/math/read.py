"""Reading tokens as an answer: which kind it is, and of what parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from rewards.math.dates import date
from rewards.math.kinds import INFINITY, Kind, Token, Tokens, closing, fraction_tokens, split
from rewards.math.names import is_label, is_name, is_point_name
from rewards.math.notation import words
from rewards.math.number_words import NUMBER_WORDS, leading
from rewards.math.shapes import (
    Approximate,
    Chain,
    Date,
    Group,
    Interval,
    Matrix,
    Named,
    Nonsense,
    Quantity,
    Ratio,
    Relation,
    Shape,
    Union,
    Words,
)
from rewards.math.trim import trim
from rewards.math.units import is_product, split_unit

_MINUS, _PLUS = Token(Kind.OPERATOR, "-"), Token(Kind.OPERATOR, "+")
_REAL_LINE = Interval(
    (Quantity((_MINUS, INFINITY), None, (_MINUS, INFINITY)), Quantity((INFINITY,), None, (INFINITY,))), "()"
)
_ANGLES = Token(Kind.COMMAND, r"\langle"), Token(Kind.COMMAND, r"\rangle")
_EQUALS = Token(Kind.OPERATOR, "=")
_INEQUALITIES = frozenset({"<", ">", "<=", ">="})
_MATRICES = frozenset(rf"\begin {name}" for name in words("pmatrix bmatrix matrix vmatrix Bmatrix smallmatrix array"))
_PARTNERS = {"(": ")]", "[": ")]", r"\{": (r"\}",), r"\langle": (r"\rangle",)}
_REALS = frozenset({("all", "real", "numbers"), ("all", "reals"), ("all", "real"), ("real", "numbers"), ("reals",)})
_FEW = 64
"""Parts of a list, or rows of a matrix, that are read; more is nonsense."""


def read(written: Tokens, depth: int = 0) -> Shape:
    """Find out what kind of answer these tokens are. `depth` counts the brackets around them."""
    written = trim(written)
    if not written or depth > 8:
        return Nonsense(written)
    if len(written) > 3 and is_point_name(written):
        written = written[1:]
    if written[0].text in "([" and [t.text for t in written[-4:]] in (["^", "{", "T", "}"], ["^", "{", r"\top", "}"]):
        written = written[:-4]  # a column vector written as a row
    if written[0].text == "<" and written[-1].text == ">":
        written = (_ANGLES[0], *written[1:-1], _ANGLES[1])
    day = date(written)
    return Date(day, _read_on(written, depth)) if day is not None else _read_on(written, depth)


def _read_on(written: Tokens, depth: int) -> Shape:
    quantity = _compound(written) or _counted(written)
    if quantity is not None:
        return quantity
    for reader in (_bracketed, _separated, _related, _united, _words, _matrix, _plus_minus):
        shape = reader(written, depth)
        if shape is not None:
            return shape
    value, unit = split_unit(written)
    return Quantity(value, unit, written)


def _bracketed(written: Tokens, depth: int) -> Shape | None:
    """A group in brackets that embrace everything."""
    partners = _PARTNERS.get(written[0].text)
    if partners is None or written[-1].text not in partners or closing(written, 0) != len(written) - 1:
        return None
    inner = written[1:-1]
    if written[0].text == r"\{":
        builder = split(inner, lambda i: inner[i].text in ("|", ":"))
        if len(builder) == 2 and len(builder[0]) <= 4:  # \{x \mid x > 3\} is said by its condition
            return read(builder[1], depth + 1)
        if not inner:
            return Words(("no", "solution"))
        parts = split(inner, lambda i: inner[i].text in (",", ";"))
        return _group(parts, "{}", depth)
    parts = split(inner, lambda i: inner[i].text in (",", ";"))
    if written[0].text == r"\langle":
        return _group(parts, "<>", depth)
    if len(parts) == 1:
        matrix = _matrix(inner, depth + 1) if inner else None
        if matrix is not None:
            return matrix
        return read(inner, depth + 1) if written[0].text == "(" and written[-1].text == ")" and inner else None
    return _group(parts, written[0].text + written[-1].text, depth)


def _group(parts: Sequence[Tokens], brackets: str, depth: int) -> Shape | None:
    if len(parts) > _FEW or any(not part for part in parts):
        return None
    items = [read(part, depth + 1) for part in parts]
    return Group(_flat(items) if brackets == "{}" else tuple(items), brackets)


def _flat(items: Sequence[Shape]) -> tuple[Shape, ...]:
    r"""Bare lists within a set or a list are elements of it: `1 \pm \sqrt{5}, -2`."""
    flat: list[Shape] = []
    for item in items:
        flat += item.items if isinstance(item, Group) and not item.brackets else [item]
    return tuple(flat)


def _separated(written: Tokens, depth: int) -> Shape | None:
    """A bare list: commas, semicolons, `and`, `or`."""

    def is_separator(index: int) -> bool:
        token = written[index]
        return token.text in (",", ";", "or", "and", "&") or (
            token.kind in (Kind.WORD, Kind.TEXT) and token.text.lower() in ("or", "and")
        )

    parts = split(written, is_separator)
    if len(parts) == 1:
        return None
    parts = [part for part in parts if trim(part)]  # "1, 2, and 3" has an empty part
    if len(parts) > _FEW:
        return Nonsense(written)
    if len(parts) < 2:
        return None
    shapes = tuple(read(part, depth + 1) for part in parts)
    ranges = [shape for shape in shapes if isinstance(shape, Interval | Union)]
    if len(ranges) == len(shapes) and any(t.text.lower() == "or" for t in written):
        variables = {shape.variable for shape in ranges}
        if len(variables) == 1:
            return _union(ranges, variables.pop())
    names = {shape.name for shape in shapes if isinstance(shape, Named)}
    if len(names) == 1 and isinstance(shapes[0], Named):  # "x = 1, 2" and "x = 1 or x = 2" both list values of x
        values = [s.values[-1] if isinstance(s, Named) else s for s in shapes]
        if all(not isinstance(s, Named) or len(s.values) == 1 for s in shapes):
            return Named(names.pop(), (Group(tuple(values)),))
    subscripted = {shape.name[0].text.partition("_")[0] for shape in shapes if isinstance(shape, Named)}
    if len(subscripted) == 1 and all(isinstance(s, Named) and "_" in s.name[0].text for s in shapes):
        return Group(tuple(s.values[-1] for s in shapes if isinstance(s, Named)))  # x_1 = 1, x_2 = 2 are two roots
    spoken = not any(written[index].text in (",", ";") for index in range(len(written)))
    return Group(_flat(shapes), "{}" if spoken and all(isinstance(shape, Words) for shape in shapes) else "")


def _union(ranges: Sequence[Shape], variable: Tokens | None) -> Union:
    flat: list[Shape] = []
    for part in ranges:
        flat += part.parts if isinstance(part, Union) else [part]
    return Union(tuple(flat), variable)


def _related(written: Tokens, depth: int) -> Shape | None:
    r"""Equalities, inequalities, `x \in S`, `a \approx b`, `Area: 12`."""
    verb = [n for n, t in enumerate(written) if t.kind in (Kind.WORD, Kind.TEXT) and t.text.lower() in ("is", "are")]
    if len(verb) == 1 and verb[0] > 0 and is_name(written[: verb[0]]):  # "the largest n is 34"
        return read((*written[: verb[0]], _EQUALS, *written[verb[0] + 1 :]), depth + 1)
    signs = ("=", "!=", "~", r"\in", ":", *_INEQUALITIES)
    found: list[int] = []
    sides = split(written, lambda i: written[i].text in signs and (found.append(i) or True))  # type: ignore[func-returns-value]
    if len(sides) == 1 or any(not side for side in sides):
        return None
    relations = [written[i].text for i in found]
    if set(relations) == {":"}:
        return _ratio(sides) or (read(sides[1], depth + 1) if len(sides) == 2 and is_label(sides[0]) else None)
    if relations[0] == ":" and is_label(sides[0]):
        return read(written[found[0] + 1 :], depth + 1)
    if "~" in relations and set(relations) <= {"~", "="}:
        cut = relations.index("~")
        left, right = written[: found[cut]], written[found[cut] + 1 :]
        if is_name(left):
            return Named(left, (read(right, depth + 1),))
        return Approximate((read(left, depth + 1), read(right, depth + 1)))
    if relations == [r"\in"]:
        inside = read(sides[1], depth + 1)
        return _of_variable(inside, sides[0]) if is_name(sides[0]) else Relation(written)
    if relations == ["!="] and is_name(sides[0]):
        return without(sides[0], [sides[1]])
    if set(relations) == {"="}:
        return _equalities(sides, depth)
    if set(relations) <= _INEQUALITIES:
        return _inequality(sides, relations, depth) or Relation(written)
    return Relation(written)


def _ratio(sides: list[Tokens]) -> Ratio | None:
    last = [t for t in sides[-1] if t.text != "."]
    half = "".join(t.text for t in last[1:]).lower()
    numbers = [*sides[:-1], tuple(last[:1])]
    if half not in ("", "am", "pm") or any(len(s) != 1 or not s[0].text.isdigit() for s in numbers):
        return None
    digits = [side[0].text for side in numbers]
    is_time = bool(half) or (int(digits[0]) < 24 and all(len(d) == 2 and d < "60" for d in digits[1:]))
    return Ratio(tuple(Fraction(int(d)) for d in digits), is_time, half[:1])


def _equalities(sides: list[Tokens], depth: int) -> Shape:
    if is_name(sides[0]):
        return Named(sides[0], tuple(read(side, depth + 1) for side in sides[1:]))
    if len(sides) == 2 and is_name(sides[1]):
        return Named(sides[1], (read(sides[0], depth + 1),))
    return Chain(tuple(sides))


def _of_variable(shape: Shape, variable: Tokens) -> Shape:
    if isinstance(shape, Union):
        return Union(shape.parts, variable)
    if isinstance(shape, Group) and shape.brackets in ("()", "[]", "(]", "[)") and len(shape.items) == 2:
        return Interval((shape.items[0], shape.items[1]), shape.brackets, variable)
    if isinstance(shape, Interval):
        return Interval(shape.ends, shape.brackets, variable)
    return Named(variable, (shape,))


def without(variable: Tokens | None, points: Sequence[Tokens]) -> Union:
    """The real line without one point."""
    low, high = _REAL_LINE.ends
    ends = [low, *(read(point, 1) for point in points), high]
    return Union(tuple(Interval((a, b), "()") for a, b in pairwise(ends)), variable)


def _inequality(sides: list[Tokens], relations: list[str], depth: int) -> Shape | None:
    """`x > 3`, `1 < x \\le 2` as intervals."""
    if all(r in (">", ">=") for r in relations):
        sides, relations = sides[::-1], [r.replace(">", "<") for r in relations[::-1]]
    if not all(r in ("<", "<=") for r in relations):
        return None
    low, high = _REAL_LINE.ends
    if len(sides) == 2 and "|" in (sides[0][0].text, sides[1][0].text):
        return _around_zero(sides, relations[0], depth)
    if len(sides) == 2 and is_name(sides[0]):
        ends, brackets, variable = (low, read(sides[1], depth + 1)), "(" + _close(relations[0]), sides[0]
    elif len(sides) == 2 and is_name(sides[1]):
        ends, brackets, variable = (read(sides[0], depth + 1), high), _open(relations[0]) + ")", sides[1]
    elif len(sides) == 3 and is_name(sides[1]):
        ends = (read(sides[0], depth + 1), read(sides[2], depth + 1))
        brackets, variable = _open(relations[0]) + _close(relations[1]), sides[1]
    else:
        return None
    signs = [Token(Kind.OPERATOR, relation) for relation in relations]
    written = tuple(token for side, sign in zip(sides, [*signs, None], strict=True) for token in _with(side, sign))
    return Interval(ends, brackets, variable, written)


def _around_zero(sides: list[Tokens], relation: str, depth: int) -> Shape | None:
    """`|x| < 3` is an interval around zero, `3 < |x|` what lies outside of it."""
    inside = sides[0][0].text == "|"
    absolute, bound = sides if inside else sides[::-1]
    if len(absolute) != 3 or absolute[1].kind is not Kind.SYMBOL or absolute[2].text != "|":
        return None
    opened, closed = Token(Kind.OPERATOR, "("), Token(Kind.OPERATOR, ")")
    ends = read((_MINUS, opened, *bound, closed), depth + 1), read(bound, depth + 1)
    variable, (low, high) = absolute[1:2], _REAL_LINE.ends
    if inside:
        return Interval(ends, _open(relation) + _close(relation), variable)
    left, right = Interval((low, ends[0]), "(" + _close(relation)), Interval((ends[1], high), _open(relation) + ")")
    return Union((left, right), variable)


def _with(side: Tokens, sign: Token | None) -> Tokens:
    return side if sign is None else (*side, sign)


def _open(relation: str) -> str:
    return "(" if relation == "<" else "["


def _close(relation: str) -> str:
    return ")" if relation == "<" else "]"


def _united(written: Tokens, depth: int) -> Shape | None:
    r"""Unions, the real line, and `\mathbb{R} \setminus \{2\}`."""
    if [t.text for t in written] == [r"\mathbb R"]:
        return _REAL_LINE
    taken = split(written, lambda i: written[i].text in (r"\setminus", "-"))
    if len(taken) == 2 and [t.text for t in taken[0]] == [r"\mathbb R"]:
        removed = read(taken[1], depth + 1)
        if isinstance(removed, Group) and removed.brackets == "{}":
            inner = taken[1][1:-1]
            return without(None, split(inner, lambda i: inner[i].text == ","))
        return None
    parts = split(written, lambda i: written[i].text == r"\cup")
    if len(parts) == 1 or len(parts) > _FEW or any(not part for part in parts):
        return None
    return Union(tuple(read(part, depth + 1) for part in parts))


def _words(written: Tokens, depth: int) -> Shape | None:
    if [t.text for t in written] in ([r"\emptyset"], [r"\{", r"\}"]):
        return Words(("no", "solution"))
    if any(t.kind not in (Kind.WORD, Kind.TEXT, Kind.SYMBOL) and t.text not in ".-'\"!?()~," for t in written):
        return None
    if all(t.kind not in (Kind.WORD, Kind.TEXT) for t in written) or (
        len(written) == 1 and written[0].kind is Kind.WORD and is_product(written[0].text.lower())
    ):
        return None
    words = tuple(
        t.text.lower()
        for t in written
        if t.kind in (Kind.WORD, Kind.TEXT, Kind.SYMBOL)
        and (len(written) == 1 or t.text.lower() not in ("a", "an", "the"))
    )
    if words in _REALS:
        return _REAL_LINE
    return Words(words) if words else None


def _matrix(written: Tokens, depth: int) -> Shape | None:
    if written[0].text == r"\begin cases" and written[-1].text == r"\end cases":
        lines = split(written[1:-1], lambda i: written[i + 1].text in ("\\\\", ","))
        return _group([line for line in lines if line], "", depth)
    start = next((n for n, token in enumerate(written) if token.text in _MATRICES), None)
    if start is None or not written[-1].text.startswith(r"\end "):
        return None
    factor, inner = written[:start], written[start + 1 : -1]
    if any(token.text in (",", ";", *_INEQUALITIES, "=") for token in factor):
        return None
    if any(token.text.startswith((r"\begin ", r"\end ")) for token in inner):
        return None
    rows = [row for row in split(inner, lambda i: inner[i].text == "\\\\") if row]
    if len(rows) > _FEW:
        return None
    cells = tuple(
        tuple(read(_times(factor, cell), depth + 1) for cell in split(row, _is_ampersand(row))) for row in rows
    )
    return Matrix(cells) if cells and all(len(row) == len(cells[0]) <= _FEW for row in cells) else None


def _times(factor: Tokens, cell: Tokens) -> Tokens:
    """An entry of a matrix that has a factor in front."""
    if not factor:
        return cell
    opened, closed = Token(Kind.OPERATOR, "("), Token(Kind.OPERATOR, ")")
    factor = (factor[0], Token(Kind.NUMBER, "1")) if [t.text for t in factor] in (["-"], ["+"]) else factor
    return (opened, *factor, closed, Token(Kind.OPERATOR, "*"), opened, *cell, closed)


def _is_ampersand(row: Tokens) -> Callable[[int], bool]:
    return lambda index: row[index].text == "&"


def _plus_minus(written: Tokens, depth: int) -> Shape | None:
    r"""`1 \pm \sqrt{2}` is a list of two."""
    if not any(token.text == r"\pm" for token in written):
        return None
    upper = tuple(_PLUS if t.text == r"\pm" else _MINUS if t.text == r"\mp" else t for t in written)
    lower = tuple(_MINUS if t.text == r"\pm" else _PLUS if t.text == r"\mp" else t for t in written)
    return Group((read(upper, depth + 1), read(lower, depth + 1)))


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
