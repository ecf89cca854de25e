"""What stands around an answer and is no part of it: punctuation, dollar signs, prose, idle brackets."""

from __future__ import annotations

from rewards.math.kinds import Kind, Token, Tokens, closing
from rewards.math.notation import words

_SIGNS = {"negative": (Token(Kind.OPERATOR, "-"),), "minus": (Token(Kind.OPERATOR, "-"),), "positive": (), "plus": ()}
_CLOSING_WORDS = words("is are the final correct answer")
_IDLE = frozenset({"\\\\", r"\therefore", r"\Rightarrow", r"\implies", r"\to", r"\Longrightarrow"})
_PROSE = words(
    "the a an is are it's so then thus hence therefore answer final our result value solution we get have equals"
    " exactly"
)


def trim(written: Tokens) -> Tokens:
    """Drop punctuation at the end, dollar signs that only mark mathematics, prose in front, and idle brackets."""
    start, end = 0, len(written)
    while start < end and written[start].text in _IDLE:
        start += 1
    while start < end and written[end - 1].text == "\\\\":
        end -= 1
    while start < end and written[start].text in ("$", ",", ":", "="):
        if written[start].text == "$" and _is_currency(written[start:end]):
            break
        start += 1
    while start < end and written[end - 1].text in (".", ",", ";", "$"):
        if written[end - 1].text == "$" and _is_currency(written[start:end]):
            break
        end -= 1
    closing_words = end
    while closing_words > start and written[closing_words - 1].text.lower() in _CLOSING_WORDS:
        closing_words -= 1
    if closing_words > start and end - closing_words > 1 and written[closing_words].text.lower() in ("is", "are"):
        end = closing_words  # "12 is the answer"
    prose = start
    while prose < end and _is_prose(written[prose], written[prose + 1 : prose + 2]):
        prose += 1
    if (
        prose > start
        and prose < end
        and any(t.text.lower() in ("answer", "is", "it's", "result", "get", "exactly") for t in written[start:prose])
    ):
        return trim(written[prose:end])
    if prose == start and start < end and written[start].text == "~":
        start += 1
    inner = written[start:end]
    if len(inner) > 1 and inner[0].text.lower() in _SIGNS:
        return (*_SIGNS[inner[0].text.lower()], *inner[1:])
    if len(inner) > 2 and inner[0].text == "{" and closing(inner, 0) == len(inner) - 1:
        return trim(inner[1:-1])
    return inner


def _is_prose(token: Token, follower: Tokens) -> bool:
    """Whether a word says nothing; `a` is an article only before another word."""
    if token.kind not in (Kind.WORD, Kind.TEXT, Kind.SYMBOL) or token.text.lower() not in _PROSE:
        return False
    return len(token.text) > 1 or (bool(follower) and follower[0].kind in (Kind.WORD, Kind.TEXT))


def _is_currency(written: Tokens) -> bool:
    """Whether the dollar sign in front (or behind) is money, which is so if it is the only one."""
    return sum(token.text == "$" for token in written) % 2 == 1
