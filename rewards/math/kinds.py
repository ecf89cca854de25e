"""What tokens are, and how to find one's way among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

    def __hash__(self) -> int:
        return hash(self.text)  # says nearly all, and is much quicker than that of a tuple with an enum


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
_NESTING = dict.fromkeys(OPENING, 1) | dict.fromkeys(CLOSING, -1)


INFINITY = Token(Kind.COMMAND, r"\infty")


def split(written: Tokens, signs: Collection[str]) -> list[Tokens]:
    """Cut at these signs where they stand outside of all brackets."""
    return cut(written, outside([token.text for token in written], signs))


def outside(texts: Sequence[str], signs: Collection[str]) -> list[int]:
    """Where these signs stand outside of all brackets, in the texts of tokens."""
    found, depth = [], 0
    for index, text in enumerate(texts):
        if text in _NESTING:
            depth += _NESTING[text]
        elif text.startswith((r"\begin ", r"\end ")):
            depth += 1 if text[1] == "b" else -1
        elif depth == 0 and text in signs:
            found.append(index)
    return found


def cut(written: Tokens, positions: Sequence[int]) -> list[Tokens]:
    """The parts between these positions, without what stands there."""
    starts = [0, *(position + 1 for position in positions)]
    return [written[start:end] for start, end in zip(starts, [*positions, len(written)], strict=True)]


def fraction_tokens(value: Fraction) -> Tokens:
    """A rational as tokens."""
    sign = (Token(Kind.OPERATOR, "-"),) if value < 0 else ()
    top = Token(Kind.NUMBER, str(abs(value.numerator)))
    if value.denominator == 1:
        return (*sign, top)
    opened, closed = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
    bottom = Token(Kind.NUMBER, str(value.denominator))
    return (*sign, Token(Kind.COMMAND, r"\frac"), opened, top, closed, opened, bottom, closed)
