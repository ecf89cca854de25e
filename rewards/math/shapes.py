"""What kind of answer a text is: a quantity, words, a set, a point, an interval, an equation, a matrix, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rewards.math.tokens import CLOSING, OPENING, Kind, Token, Tokens, closing, words
from rewards.math.units import Unit, lookup, split_unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression, with its unit if it has one; `written` is the whole of it, for when letters were no unit."""

    value: Tokens
    unit: Unit | None
    written: Tokens


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words: `Tuesday`, `no solution`. Lower case, without punctuation."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Several answers: a bare list without brackets, a set in `{}`, or ordered in `()`, `[]`, `(]`, `[)`, `<>`."""

    items: tuple[Shape, ...]
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that came from inequalities, so that its brackets are known to mean ends."""

    ends: tuple[Shape, Shape]
    brackets: str
    variable: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Union:
    """A union of intervals or sets, of the named variable if it came from inequalities."""

    parts: tuple[Shape, ...]
    variable: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """`x = 3`, `f(x) = x^2`, `Area: 12`: a name, and what it is said to be; several values make an equality chain."""

    name: Tokens
    values: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """`2 + 3 = 5` or `2x + 3y = 7`: sides that are claimed to be equal, none of which is a mere name."""

    sides: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class Approximate:
    r"""`2\sqrt{5} \approx 4.47`."""

    parts: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """An inequality that is no interval of one variable, as `x + y < 3`."""

    written: Tokens


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix or a column vector, row by row."""

    rows: tuple[tuple[Shape, ...], ...]


@dataclass(frozen=True, slots=True)
class Nonsense:
    """What cannot be read; equal only to the very same tokens."""

    written: Tokens


Shape = Quantity | Words | Group | Interval | Union | Named | Chain | Approximate | Relation | Matrix | Nonsense

INFINITY = Token(Kind.COMMAND, r"\infty")
_MINUS, _PLUS = Token(Kind.OPERATOR, "-"), Token(Kind.OPERATOR, "+")
_REAL_LINE = Interval(
    (Quantity((_MINUS, INFINITY), None, (_MINUS, INFINITY)), Quantity((INFINITY,), None, (INFINITY,))), "()"
)
_INEQUALITIES = frozenset({"<", ">", "<=", ">="})
_MATRICES = frozenset(rf"\begin {name}" for name in words("pmatrix bmatrix matrix vmatrix Bmatrix smallmatrix array"))
_PARTNERS = {"(": ")]", "[": ")]", r"\{": (r"\}",), r"\langle": (r"\rangle",)}
_REALS = frozenset({("all", "real", "numbers"), ("all", "reals"), ("all", "real"), ("real", "numbers"), ("reals",)})
_PROSE = words("the a an is are so then thus hence therefore answer final our result value solution we get have equals")
NOT_NAMES = words("not no isn't never wrong incorrect false or and if unless maybe either neither except")
"""Words that no quantity's name has: `not x = 3`."""
_FEW = 64
"""Parts of a list, or rows of a matrix, that are read; more is nonsense."""


def read(written: Tokens, depth: int = 0) -> Shape:
    """Find out what kind of answer these tokens are. `depth` counts the brackets around them."""
    written = _trim(written)
    if not written or depth > 8:
        return Nonsense(written)
    for reader in (_bracketed, _separated, _related, _united, _words, _matrix, _plus_minus):
        shape = reader(written, depth)
        if shape is not None:
            return shape
    compound = _compound(written)
    if compound is not None:
        return compound
    value, unit = split_unit(written)
    return Quantity(value, unit, written)


def _trim(written: Tokens) -> Tokens:
    """Drop punctuation at the end, dollar signs that only mark mathematics, prose in front, and idle brackets."""
    start, end = 0, len(written)
    while start < end and written[start].text in ("$", ",", ":", "=") and not _is_currency(written[start:end]):
        start += 1
    while start < end and written[end - 1].text in (".", ",", ";", "$", "...") and not _is_currency(written[start:end]):
        end -= 1
    words = start
    while words < end and written[words].kind in (Kind.WORD, Kind.TEXT, Kind.SYMBOL) and _is_prose(written[words]):
        words += 1
    if (
        words > start
        and words < end
        and any(t.text.lower() in ("answer", "is", "result", "get") for t in written[start:words])
    ):
        return _trim(written[words:end])
    if words == start and start < end and written[start].text == "~":
        start += 1
    inner = written[start:end]
    if len(inner) > 2 and inner[0].text == "{" and closing(inner, 0) == len(inner) - 1:
        return _trim(inner[1:-1])
    return inner


def _is_prose(token: Token) -> bool:
    return token.text.lower() in _PROSE and (token.kind is not Kind.SYMBOL or token.spaced)


def _is_currency(written: Tokens) -> bool:
    """Whether the dollar sign in front (or behind) is money, which is so if it is the only one."""
    return sum(token.text == "$" for token in written) % 2 == 1


def split(written: Tokens, is_separator: Callable[[int], bool]) -> list[Tokens]:
    """Cut at separators that stand outside of all brackets."""
    parts, depth, start = [], 0, 0
    for index, token in enumerate(written):
        if token.text in OPENING or token.text.startswith(r"\begin "):
            depth += 1
        elif token.text in CLOSING or token.text.startswith(r"\end "):
            depth -= 1
        elif depth == 0 and is_separator(index):
            parts.append(written[start:index])
            start = index + 1
    return [*parts, written[start:]]


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
        return read(inner, depth + 1) if written[0].text == "(" and written[-1].text == ")" and inner else None
    return _group(parts, written[0].text + written[-1].text, depth)


def _group(parts: Sequence[Tokens], brackets: str, depth: int) -> Shape | None:
    if len(parts) > _FEW or any(not part for part in parts):
        return None
    return Group(tuple(read(part, depth + 1) for part in parts), brackets)


def _separated(written: Tokens, depth: int) -> Shape | None:
    """A bare list: commas, semicolons, `and`, `or`."""

    def is_separator(index: int) -> bool:
        token = written[index]
        return token.text in (",", ";", "or", "and") or (
            token.kind in (Kind.WORD, Kind.TEXT) and token.text.lower() in ("or", "and")
        )

    parts = split(written, is_separator)
    if len(parts) == 1:
        return None
    parts = [part for part in parts if _trim(part)]  # "1, 2, and 3" has an empty part
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
    return Group(shapes)


def _union(ranges: Sequence[Shape], variable: Tokens | None) -> Union:
    flat: list[Shape] = []
    for part in ranges:
        flat += part.parts if isinstance(part, Union) else [part]
    return Union(tuple(flat), variable)


def _related(written: Tokens, depth: int) -> Shape | None:
    r"""Equalities, inequalities, `x \in S`, `a \approx b`, `Area: 12`."""
    signs = ("=", "!=", "~", r"\in", ":", *_INEQUALITIES)
    found: list[int] = []
    sides = split(written, lambda i: written[i].text in signs and (found.append(i) or True))  # type: ignore[func-returns-value]
    if len(sides) == 1 or any(not side for side in sides):
        return None
    relations = [written[i].text for i in found]
    if set(relations) == {":"}:
        named = len(sides) == 2 and all(t.kind in (Kind.WORD, Kind.TEXT) for t in sides[0])
        return read(sides[1], depth + 1) if named else None  # else a ratio or a time of day
    if relations[0] == ":" and all(t.kind in (Kind.WORD, Kind.TEXT) for t in sides[0]):
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


def _equalities(sides: list[Tokens], depth: int) -> Shape:
    if is_name(sides[0]):
        return Named(sides[0], tuple(read(side, depth + 1) for side in sides[1:]))
    if len(sides) == 2 and is_name(sides[1]):
        return Named(sides[1], (read(sides[0], depth + 1),))
    return Chain(tuple(sides))


def is_name(side: Tokens) -> bool:
    """Whether this is a name that may be given a value: `x`, `f(x)`, `x_1`, `Area of ABC`, `(x, y)`, but not `2x`."""
    side = _trim(side)
    if not side or any(t.text.lower() in NOT_NAMES for t in side):
        return False
    if all(t.kind in (Kind.WORD, Kind.TEXT, Kind.SYMBOL) for t in side):
        return len(side) == 1 or any(t.kind is Kind.TEXT or len(t.text) > 3 for t in side)
    if side[0].text == "(" and closing(side, 0) == len(side) - 1:
        return all(t.kind is Kind.SYMBOL or t.text in ("(", ")", ",") for t in side) and len(side) > 3
    if side[0].kind is Kind.SYMBOL and len(side) > 3 and side[1].text == "(" and side[-1].text == ")":
        return all(t.kind is Kind.SYMBOL or t.text == "," for t in side[2:-1])
    if side[0].text in (r"\angle", r"\triangle", "|", r"\overline", r"\sin", r"\cos", r"\tan", r"\log"):
        return all(t.kind in (Kind.WORD, Kind.SYMBOL) or t.text in "{}|" for t in side[1:])
    return side[0].kind is Kind.SYMBOL and len(side) == 2 and side[1].text == "'"


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
    if len(sides) == 2 and is_name(sides[0]):
        ends, brackets, variable = (low, read(sides[1], depth + 1)), "(" + _close(relations[0]), sides[0]
    elif len(sides) == 2 and is_name(sides[1]):
        ends, brackets, variable = (read(sides[0], depth + 1), high), _open(relations[0]) + ")", sides[1]
    elif len(sides) == 3 and is_name(sides[1]):
        ends = (read(sides[0], depth + 1), read(sides[2], depth + 1))
        brackets, variable = _open(relations[0]) + _close(relations[1]), sides[1]
    else:
        return None
    return Interval(ends, brackets, variable)


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
    if all(t.kind is Kind.SYMBOL for t in written) or (
        len(written) == 1 and written[0].kind is Kind.WORD and is_product(written[0])
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


def is_product(token: Token) -> bool:
    """Whether a run of letters may be a product of variables: `xy`, `abc`, but not `no`."""
    from rewards.math.numbers import NOT_A_PRODUCT

    return len(token.text) <= 4 and token.text.lower() not in NOT_A_PRODUCT and lookup(token.text) is None


def _matrix(written: Tokens, depth: int) -> Shape | None:
    if written[0].text not in _MATRICES or not written[-1].text.startswith(r"\end "):
        return None
    inner = written[1:-1]
    if any(token.text.startswith((r"\begin ", r"\end ")) for token in inner):
        return None
    rows = [row for row in split(inner, lambda i: inner[i].text == "\\\\") if row]
    if len(rows) > _FEW:
        return None
    cells = tuple(tuple(read(cell, depth + 1) for cell in split(row, _is_ampersand(row))) for row in rows)
    return Matrix(cells) if cells and all(len(row) == len(cells[0]) <= _FEW for row in cells) else None


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
    """`1 hour 30 minutes`: quantities of one dimension, added up."""
    starts = [
        i
        for i, t in enumerate(written)
        if t.kind is Kind.NUMBER and (i == 0 or written[i - 1].kind in (Kind.WORD, Kind.TEXT))
    ]
    if len(starts) < 2 or starts[0] != 0:
        return None
    total, first = Fraction(0), None
    for start, end in zip(starts, [*starts[1:], len(written)], strict=True):
        value, unit = split_unit(written[start:end])
        if unit is None or not unit.dimensions or len(value) != 1 or not value[0].text.isdigit():
            return None
        if first is not None and first.dimensions != unit.dimensions:
            return None
        first = first or unit
        total += int(value[0].text) * unit.factor
    assert first is not None
    return Quantity(fraction_tokens(total / first.factor), first, written)


def fraction_tokens(value: Fraction) -> Tokens:
    """A rational as tokens."""
    sign = (_MINUS,) if value < 0 else ()
    top = Token(Kind.NUMBER, str(abs(value.numerator)))
    if value.denominator == 1:
        return (*sign, top)
    opened, closed = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
    bottom = Token(Kind.NUMBER, str(value.denominator))
    return (*sign, Token(Kind.COMMAND, r"\frac"), opened, top, closed, opened, bottom, closed)
