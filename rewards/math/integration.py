r"""`+ C` and `+ c`: a constant that may be any number may have any name."""

from __future__ import annotations

from rewards.math.kinds import Kind, Token, Tokens
from rewards.math.tree import letter_by_letter

_NAMES = frozenset({"C", "c", "K", "k", "C_1", "c_1", "C_0", "D"})
"""What such a constant is called; the gold calls it `C`."""


def _numbered(token: Token, theirs: list[str]) -> Token:
    """`c_1` as `C_1`, or the other way round, if that is what the gold has."""
    other = token.text.swapcase()
    if token.text[:2] not in ("C_", "c_") or token.text in theirs or other not in theirs:
        return token
    return Token(Kind.SYMBOL, other, token.spaced)


def renamed(gold: Tokens, answer: Tokens) -> Tokens:
    """The answer with its constant of integration called `C`, if that is what the gold has and no answer's letter is.

    A constant occurs once in each, and neither has the other's name beside it.
    """
    gold, answer = letter_by_letter(gold), letter_by_letter(answer)
    theirs = [token.text for token in gold if token.kind is Kind.SYMBOL]
    if any(name.startswith(("C_", "c_")) for name in theirs):
        answer = tuple(_numbered(token, theirs) for token in answer)
    if theirs.count("C") != 1 or len(set(theirs)) < 2:
        return answer
    ours = [token.text for token in answer if token.kind is Kind.SYMBOL]
    if "C" in ours:
        return answer
    free = {name for name in ours if name in _NAMES and name not in theirs}
    if len(free) != 1 or ours.count(name := free.pop()) != 1:
        return answer
    return tuple(Token(Kind.SYMBOL, "C", t.spaced) if t.text == name and t.kind is Kind.SYMBOL else t for t in answer)
