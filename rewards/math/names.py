"""Names that an answer may give to what it says: `x`, `f(x)`, `Area of ABC`, the point `P`, a label."""

from __future__ import annotations

from rewards.math.kinds import Kind, Token, Tokens, closing, split
from rewards.math.notation import words
from rewards.math.trim import trim

_MARKS = frozenset("{}|")
NOT_NAMES = words(
    "not no isn't never wrong incorrect false or and if unless maybe either neither except lambda return def print"
)
"""Words that no quantity's name has: `not x = 3`."""


def denies(token: Token) -> bool:
    """Whether this word takes an answer back or makes it doubtful; `NO` and `OR` may be segments."""
    return token.text.lower() in NOT_NAMES and not (len(token.text) == 2 and token.text.isupper())


def is_name(side: Tokens) -> bool:
    """Whether this is a name that may be given a value: `x`, `f(x)`, `x_1`, `Area of ABC`, `(x, y)`, but not `2x`."""
    side = trim(side)
    if not side or any(denies(t) for t in side):
        return False
    if all(t.kind in (Kind.WORD, Kind.TEXT, Kind.SYMBOL) for t in side):
        return len(side) == 1 or any(t.kind is Kind.TEXT or len(t.text) > 2 for t in side)
    if side[0].text == "(" and closing(side, 0) == len(side) - 1:
        return all(t.kind is Kind.SYMBOL or t.text in ("(", ")", ",") for t in side) and len(side) > 3
    if len(side) > 3 and side[0].text in ("P", "E") and side[1].text == "(":
        return closing(side, 1) == len(side) - 1  # P(X = 2)
    if side[0].kind is Kind.SYMBOL and len(side) > 3 and side[1].text == "(" and side[-1].text == ")":
        return all(t.kind in (Kind.SYMBOL, Kind.NUMBER) or t.text in (",", "-") for t in side[2:-1])  # f(x), f(-2)
    if side[0].text in (r"\angle", r"\triangle", "|", r"\overline", r"\sin", r"\cos", r"\tan"):
        return all(t.text.isupper() or t.text in _MARKS or t.text.startswith("\\") for t in side[1:])  # |AB|, not |x|
    if len(side) > 8 and side[0].kind is Kind.SYMBOL and [t.text for t in side[1:6]] == ["^", "{", "-", "1", "}"]:
        return is_name((side[0], *side[6:]))  # f^{-1}(x)
    return len(side) > 1 and side[0].text in (r"\max", r"\min") and is_name(side[1:])


def is_label(side: Tokens) -> bool:
    """Whether these are words that may stand before a colon: `Area: 12`."""
    return all(t.kind in (Kind.WORD, Kind.TEXT) and not denies(t) and not _is_segment(t) for t in side)


def _is_segment(token: Token) -> bool:
    """Whether a word is that of two points, as in the ratio `AP : PB`."""
    return token.kind is Kind.WORD and token.text.isupper() and len(token.text) == 2


def is_point_name(written: Tokens) -> bool:
    """Whether this is `P(1, 2)`: a capital in front of coordinates."""
    name = written[0]
    if name.kind is not Kind.SYMBOL or not name.text.isupper() or written[1].text != "(" or written[-1].text != ")":
        return False
    return closing(written, 1) == len(written) - 1 and len(split(written[2:-1], (",",))) > 1
