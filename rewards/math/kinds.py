"""What tokens are, and how to find one's way among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction


class Kind(StrEnum):
    """What a token is."""

    NUMBER = "number"
    """A number as written, without separators; `0.1(6)` for a repeating decimal, `101_2` for one with a base."""
    SYMBOL = "symbol"
    """One letter, possibly with a subscript: `x`, `x_1`, `\\theta`."""
    WORD = "word"
    """Several letters outside of `\\text`: a word, a unit, or a product of variables."""
    TEXT = "text"
    """A word inside `\\text` and its relatives."""
    COMMAND = "command"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Token:
    r"""One token; what is no part of its identity is whether white space came before it (`spaced`), and its `mark`.

    A mark is `vector` for letters with an arrow or in bold, and `times` for `\times`.
    """

    kind: Kind
    text: str
    spaced: bool = field(default=False, compare=False)
    mark: str = field(default="", compare=False)


Tokens = tuple[Token, ...]
MAX_DEPTH = 24
"""Nesting of groups beyond which nothing is read: no honest answer needs it, and Python's stack is finite."""


class TooDeepError(ValueError):
    """Braces are nested deeper than any honest answer needs."""


def closing(found: Sequence[Token], start: int) -> int | None:
    """Index of the token that closes the group opened at `start`, whatever its brackets; `None` if there is none."""
    depth = 0
    for position in range(start, len(found)):
        if found[position].text in OPENING:
            depth += 1
        elif found[position].text in CLOSING:
            depth -= 1
            if depth == 0:
                return position
    return None


OPENING = frozenset({"{", "(", "[", r"\{", r"\langle", r"\lfloor", r"\lceil"})
CLOSING = frozenset({"}", ")", "]", r"\}", r"\rangle", r"\rfloor", r"\rceil"})


INFINITY = Token(Kind.COMMAND, r"\infty")


def split(written: Tokens, is_separator: Callable[[int], bool]) -> list[Tokens]:
    """Cut at separators that stand outside of all brackets."""
    parts, depth, start = [], 0, 0
    for index, token in enumerate(written):
        text = token.text
        if text in OPENING:
            depth += 1
        elif text in CLOSING:
            depth -= 1
        elif text[:1] == "\\" and text.startswith((r"\begin ", r"\end ")):
            depth += 1 if text[1] == "b" else -1
        elif depth == 0 and is_separator(index):
            parts.append(written[start:index])
            start = index + 1
    return [*parts, written[start:]]


def fraction_tokens(value: Fraction) -> Tokens:
    """A rational as tokens."""
    sign = (Token(Kind.OPERATOR, "-"),) if value < 0 else ()
    top = Token(Kind.NUMBER, str(abs(value.numerator)))
    if value.denominator == 1:
        return (*sign, top)
    opened, closed = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
    bottom = Token(Kind.NUMBER, str(value.denominator))
    return (*sign, Token(Kind.COMMAND, r"\frac"), opened, top, closed, opened, bottom, closed)
