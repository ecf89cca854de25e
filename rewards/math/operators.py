r"""Letters that are no variables: functions (`f` in `f(x)`), differentials (`dx`), derivatives (`\frac{dy}{dx}`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rewards.math.kinds import Kind, Token, Tokens, closing

_ALWAYS = frozenset({"f", "F", r"\phi", r"\psi", r"\Phi", r"\Psi"})
"""Letters that are functions wherever brackets follow them; others only if their argument is a single thing."""
_NEVER = frozenset({"i", "e", "d"})
_NUMERATOR = re.compile(r"(d|\\partial) ?((?:\^ \{ \d \} ?)?)(.*)")
_DENOMINATOR = re.compile(r"(d|\\partial) ?(\\?[A-Za-z]+)(?: \^ \{ \d \})?")
_DIFFERENTIAL = re.compile(r"d(\\?[a-zA-Z]+)")


def function_letters(expressions: Sequence[Tokens]) -> frozenset[str]:
    """The letters that are functions in these expressions: brackets follow them wherever they stand.

    `h(a+b)` alone could be a product; it is one unless the letter is one of the usual ones, or is applied to a single
    variable, number or function: `h(x)`.
    """
    if not any(token.text == "(" for expression in expressions for token in expression):
        return frozenset()
    applied: set[str] = set()
    bare: set[str] = set()
    single: set[str] = set()
    for expression in expressions:
        for position, (token, follower) in enumerate(pairwise((*expression, Token(Kind.OPERATOR, "")))):
            if token.kind is not Kind.SYMBOL or token.text in _NEVER:
                continue
            start = position + 1
            if [t.text for t in expression[start : start + 5]] == ["^", "{", "-", "1", "}"]:
                start += 5
                follower = expression[start] if start < len(expression) else Token(Kind.OPERATOR, "")
            if follower.text != "(":
                bare.add(token.text)
                continue
            applied.add(token.text)
            if token.text.rstrip("'") in _ALWAYS or _is_single(expression, start):
                single.add(token.text)
    return frozenset((applied & single) - bare)


def _is_single(expression: Tokens, opened: int) -> bool:
    """Whether the bracket that opens here holds a variable, a number, several of them, or a function's value."""
    end = closing(expression, opened)
    if end is None:
        return False
    inside = [token for token in expression[opened + 1 : end] if token.text not in ("-", ",")]
    if len(inside) > 3 and inside[0].kind is Kind.SYMBOL and inside[1].text == "(" and inside[-1].text == ")":
        return True
    return all(token.kind in (Kind.SYMBOL, Kind.NUMBER) for token in inside) and 0 < len(inside) <= 3


def is_differential(expression: Tokens, position: int) -> str:
    """The variable of the `dx` or `d x` that stands here; empty if none does."""
    here = expression[position : position + 2]
    if not here:
        return ""
    found = _DIFFERENTIAL.fullmatch(here[0].text) if here[0].kind in (Kind.WORD, Kind.TEXT) else None
    if found is not None:
        return found[1] if len(found[1]) == 1 else ""
    return here[1].text if len(here) > 1 and here[0].text == "d" and here[1].kind is Kind.SYMBOL else ""


def derivative(expression: Tokens, position: int) -> tuple[int, str] | None:
    r"""What follows `\frac`, if it is a derivative: where it ends and its name, `d/…` if it is that of what follows."""
    middle = closing(expression, position)
    if middle is None or middle + 1 >= len(expression) or expression[position].text != "{":
        return None
    end = closing(expression, middle + 1)
    if end is None:
        return None
    above = _NUMERATOR.fullmatch(_text(expression[position + 1 : middle]))
    below = _DENOMINATOR.fullmatch(_text(expression[middle + 2 : end]))
    if above is None or below is None or above[1] != below[1]:
        return None
    whole = f"{above[1]}{above[2]}{above[3]}/{below[0]}".replace(" ", "")
    return end + 1, whole if above[3] else f"d/{whole}"


def _text(expression: Tokens) -> str:
    return " ".join(token.text for token in expression)
