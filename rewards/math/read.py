"""Reading tokens as an answer: which kind it is, and of what parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rewards.math.amounts import amount
from rewards.math.dates import date
from rewards.math.kinds import Kind, Token, Tokens, closing, cut, outside, split
from rewards.math.names import is_label, is_name, is_point_name
from rewards.math.regions import (
    INEQUALITIES,
    NOTHING,
    REAL_LINE,
    as_interval,
    both,
    inequality,
    iso_brackets,
    union,
    without,
)
from rewards.math.shapes import (
    Approximate,
    Chain,
    Date,
    Group,
    Interval,
    Named,
    Nonsense,
    Quantity,
    Ratio,
    Relation,
    Shape,
    Union,
    Words,
)
from rewards.math.tables import table
from rewards.math.tree import tree
from rewards.math.trim import trim
from rewards.math.units import is_product, split_unit

_MINUS, _PLUS = Token(Kind.OPERATOR, "-"), Token(Kind.OPERATOR, "+")
_ANGLES = Token(Kind.COMMAND, r"\langle"), Token(Kind.COMMAND, r"\rangle")
_EQUALS = Token(Kind.OPERATOR, "=")
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
        return _named_point(written, depth)
    if written[0].text in "([" and [t.text for t in written[-4:]] in (["^", "{", "T", "}"], ["^", "{", r"\top", "}"]):
        written = written[:-4]  # a column vector written as a row
    turned = iso_brackets(written)
    if turned is not None:
        shape = read(turned, depth)
        return as_interval(shape) or shape
    if written[0].text == "<" and written[-1].text == ">":
        written = (_ANGLES[0], *written[1:-1], _ANGLES[1])
    day = date(written)
    return Date(day, _read_on(written, depth)) if day is not None else _read_on(written, depth)


def _named_point(written: Tokens, depth: int) -> Shape:
    """`P(1, 2)`: the point, and all of it in case it is a number of permutations."""
    point = read(written[1:], depth)
    return Group(point.items, point.brackets, written) if isinstance(point, Group) else point


def _read_on(written: Tokens, depth: int) -> Shape:
    quantity = amount(written)
    if quantity is not None:
        return quantity
    texts = {token.text.lower() for token in written}
    for reader, signs in _READERS.items():
        shape = reader(written, depth) if signs is None or not signs.isdisjoint(texts) else None
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
        builder = split(inner, ("|", ":"))
        if len(builder) == 2 and len(builder[0]) <= 4:  # \{x \mid x > 3\} is said by its condition
            return read(builder[1], depth + 1)
        if not inner:
            return Words(("no", "solution"))
        return _group(split(inner, (",", ";")), "{}", depth)
    parts = split(inner, (",", ";"))
    if written[0].text == r"\langle":
        return _group(parts, "<>", depth)
    if len(parts) == 1:
        matrix = table(inner, read, depth + 1) if inner else None
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
    used: set[str] = set()
    parts = _listed(written, _SEPARATORS, used)
    if len(parts) == 1:
        return None
    parts = [part for part in parts if trim(part)]  # "1, 2, and 3" has an empty part
    if len(parts) > _FEW:
        return Nonsense(written)
    if len(parts) < 2:
        return None
    if used & _OUTER and used - _OUTER:
        cases = [read(part, depth + 1) for part in _listed(written, _OUTER, set()) if trim(part)]
        if len(cases) > 1 and all(_names_several(case) for case in cases):
            return Group(tuple(cases))  # p = 5, q = 2; p = 7, q = 2
    shapes = tuple(read(part, depth + 1) for part in _excluded(parts))
    ranges = [shape for shape in shapes if isinstance(shape, Interval | Union)]
    if len(ranges) == len(shapes):
        joint = _ranges(ranges, used)
        if joint is not None:
            return joint
    if any(token.kind is Kind.OPERATOR and token.text in ("and", "or") for token in written):
        return Nonsense(written)  # a formula of logic
    return _named_alike(shapes) or Group(_flat(shapes), _connective(shapes, used))


_SEPARATORS = frozenset({",", ";", "or", "and", "&"})
_OUTER = frozenset({";", "or"})
"""Separators of cases, each of which may be a list with commas."""


def _listed(written: Tokens, separators: frozenset[str], used: set[str]) -> list[Tokens]:
    """The parts of a list; adds the separators that occur to those used."""
    texts = [token.text.lower() for token in written]
    positions = outside(texts, separators)
    used.update(texts[position] for position in positions)
    return cut(written, positions)


def _excluded(parts: list[Tokens]) -> list[Tokens]:
    """`x \\ne 1, 2` as `x \\ne 1, x \\ne 2`."""
    texts = [token.text for token in parts[0]]
    if "!=" not in texts or any(token.text in ("=", "!=", *INEQUALITIES) for part in parts[1:] for token in part):
        return parts
    return [parts[0], *((*parts[0][: texts.index("!=") + 1], *part) for part in parts[1:])]


def _names_several(shape: Shape) -> bool:
    return isinstance(shape, Group) and len(shape.items) > 1 and all(isinstance(i, Named) for i in shape.items)


def _ranges(ranges: Sequence[Shape], used: set[str]) -> Shape | None:
    """Conditions on one variable: `or` joins them, `and` and commas mean that all hold, if they can."""
    variables = {shape.variable for shape in ranges if isinstance(shape, Interval | Union)}
    if len(variables) > 1:
        return None
    variable = variables.pop()
    if "or" in used:
        return union(ranges, variable)
    if variable is None:
        return None
    joint = both(ranges, variable)
    return union(ranges, variable) if joint == NOTHING and "and" not in used else joint


def _named_alike(shapes: Sequence[Shape]) -> Shape | None:
    """`x = 1, 2` and `x = 1 or x = 2` list values of x; `x_1 = 1, x_2 = 2` are two roots."""
    names = {shape.name for shape in shapes if isinstance(shape, Named)}
    if len(names) == 1 and isinstance(shapes[0], Named):
        values = [s.values[-1] if isinstance(s, Named) else s for s in shapes]
        if all(not isinstance(s, Named) or len(s.values) == 1 for s in shapes):
            return Named(names.pop(), (Group(tuple(values)),))
    subscripted = {shape.name[0].text.partition("_")[0] for shape in shapes if isinstance(shape, Named)}
    if len(subscripted) == 1 and all(isinstance(s, Named) and "_" in s.name[0].text for s in shapes):
        return Group(tuple(s.values[-1] for s in shapes if isinstance(s, Named)))
    return None


def _connective(shapes: Sequence[Shape], used: set[str]) -> str:
    """The brackets that stand for how words are joined: `rain or snow` is one of them, `rain and snow` both."""
    if used & {",", ";"} or not all(isinstance(shape, Words) for shape in shapes):
        return "or" if "or" in used and all(isinstance(shape, Named) for shape in shapes) else ""
    return "or" if "or" in used else "{}"


def _related(written: Tokens, depth: int) -> Shape | None:
    r"""Equalities, inequalities, `x \in S`, `a \approx b`, `Area: 12`."""
    verb = [n for n, t in enumerate(written) if t.kind in (Kind.WORD, Kind.TEXT) and t.text.lower() in ("is", "are")]
    if len(verb) == 1 and verb[0] > 0 and is_name(written[: verb[0]]):  # "the largest n is 34"
        return read((*written[: verb[0]], _EQUALS, *written[verb[0] + 1 :]), depth + 1)
    if len(written) == 3 and written[1].text.lower() == "to" and written[1].kind in (Kind.WORD, Kind.TEXT):
        return _ratio([written[:1], written[2:]])  # 2 to 3
    found = outside([token.text for token in written], _RELATIONS)
    sides = cut(written, found)
    if len(sides) == 1 or any(not side for side in sides):
        return None
    relations = [written[i].text for i in found]
    if set(relations) == {":"}:
        return read(sides[1], depth + 1) if len(sides) == 2 and is_label(sides[0]) else _ratio(sides)
    if set(relations) == {"=", ":"} and (relations[0] == "=" or not is_label(sides[0])):  # S_1 : S_2 = 2 : 3
        last = found[len(relations) - 1 - relations[::-1].index("=")]
        if not any(token.kind is Kind.NUMBER for token in written[:last]):
            return Named(written[:last], (read(written[last + 1 :], depth + 1),))
    if relations[0] == ":" and is_label(sides[0]):
        return read(written[found[0] + 1 :], depth + 1)
    if "~" in relations and set(relations) <= {"~", "="}:
        first = found[relations.index("~")]
        left, right = written[:first], written[first + 1 :]
        if is_name(left):
            return Named(left, (read(right, depth + 1),))
        return Approximate((read(left, depth + 1), read(right, depth + 1)))
    if relations == [r"\in"]:
        inside = read(sides[1], depth + 1)
        return _of_variable(inside, sides[0]) if is_name(sides[0]) else Relation(written)
    if relations == ["!="] and is_name(sides[0]):
        return without(sides[0], [read(sides[1], depth + 1)])
    if set(relations) == {"="}:
        return _equalities(sides, depth)
    if set(relations) <= INEQUALITIES:
        return inequality(sides, relations, read, depth) or Relation(written)
    return Relation(written)


def _ratio(sides: list[Tokens]) -> Ratio | None:
    """`2:3`, `1:\\sqrt{2}`, or a time of day."""
    last = [t for t in sides[-1] if t.text != "."]
    half = "".join(t.text for t in last[1:]).lower() if len(last) > 1 else ""
    numbers = [*sides[:-1], tuple(last[:1])]
    if half in ("", "am", "pm") and all(len(s) == 1 and s[0].text.isdigit() for s in numbers):
        digits = [side[0].text for side in numbers]
        is_time = bool(half) or (int(digits[0]) < 24 and all(len(d) == 2 and d < "60" for d in digits[1:]))
        return Ratio(tuple(numbers), is_time, half[:1])
    if any(tree(side) is None for side in sides):
        return None
    return Ratio(tuple(sides), False)


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


def _united(written: Tokens, depth: int) -> Shape | None:
    r"""Unions, the real line, and `\mathbb{R} \setminus \{2\}`."""
    if [t.text for t in written] == [r"\mathbb R"]:
        return REAL_LINE
    taken = split(written, (r"\setminus", "-"))
    if len(taken) == 2 and [t.text for t in taken[0]] == [r"\mathbb R"]:
        removed = read(taken[1], depth + 1)
        if isinstance(removed, Group) and removed.brackets == "{}":
            inner = taken[1][1:-1]
            return without(None, [read(part, depth + 1) for part in split(inner, (",",))])
        return None
    for sign in (r"\cup", r"\cap"):
        parts = split(written, (sign,))
        if 1 < len(parts) <= _FEW and all(parts):
            shapes = [read(part, depth + 1) for part in parts]
            return Union(tuple(shapes)) if sign == r"\cup" else both(shapes, None)
    return None


def _table(written: Tokens, depth: int) -> Shape | None:
    return table(written, read, depth)


def _words(written: Tokens, depth: int) -> Shape | None:
    if [t.text for t in written] in ([r"\emptyset"], [r"\{", r"\}"]):
        return Words(("no", "solution"))
    if written[0].text == "-":
        return None
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
        return REAL_LINE
    return Words(words) if words else None


def _plus_minus(written: Tokens, depth: int) -> Shape | None:
    r"""`1 \pm \sqrt{2}` is a list of two."""
    upper = tuple(_PLUS if t.text == r"\pm" else _MINUS if t.text == r"\mp" else t for t in written)
    lower = tuple(_MINUS if t.text == r"\pm" else _PLUS if t.text == r"\mp" else t for t in written)
    return Group((read(upper, depth + 1), read(lower, depth + 1)))


_RELATIONS = INEQUALITIES | {"=", "!=", "~", r"\in", ":"}
_READERS: Mapping[Callable[[Tokens, int], Shape | None], frozenset[str] | None] = {
    _bracketed: None,
    _separated: _SEPARATORS,
    _related: _RELATIONS | {"is", "are", "to"},
    _united: frozenset({r"\mathbb r", r"\cup", r"\cap"}),
    _words: None,
    _table: None,
    _plus_minus: frozenset({r"\pm"}),
}
"""Who reads an answer, in this order, and the texts, in lower case, of which it needs one."""
