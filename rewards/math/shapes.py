"""Kinds of answers: a quantity, words, a set, a point, an interval, an equation, a matrix, ..."""

from __future__ import annotations

from dataclasses import dataclass, field

from rewards.math.kinds import Tokens
from rewards.math.units import Unit


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
    """Several answers: a bare list without brackets, a set in `{}`, or ordered in `()`, `[]`, `(]`, `[)`, `<>`.

    Words joined by `or` have that for brackets. `written` is the whole of `P(1, 2)`, which may be no point.
    """

    items: tuple[Shape, ...]
    brackets: str = ""
    written: Tokens = ()


@dataclass(frozen=True, slots=True)
class Date:
    """`March 5`, `5 March 2004`: year (0 if none is said), month and day, and what the same tokens are otherwise."""

    day: tuple[int, int, int]
    otherwise: Shape


@dataclass(frozen=True, slots=True)
class Ratio:
    """`2:3`, or a time of day: `4:51:06 p.m.` with its half of the day, `a` or `p`."""

    parts: tuple[Tokens, ...]
    is_time: bool
    half: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that came from inequalities, so that its brackets are known to mean ends."""

    ends: tuple[Shape, Shape]
    brackets: str
    variable: Tokens | None = None
    written: Tokens = field(default=(), compare=False)


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
    """A matrix or a column vector, row by row; between bars it is a determinant."""

    rows: tuple[tuple[Shape, ...], ...]
    is_determinant: bool = False


@dataclass(frozen=True, slots=True)
class Nonsense:
    """What cannot be read; equal only to the very same tokens."""

    written: Tokens


Shape = (
    Quantity
    | Date
    | Ratio
    | Words
    | Group
    | Interval
    | Union
    | Named
    | Chain
    | Approximate
    | Relation
    | Matrix
    | Nonsense
)
