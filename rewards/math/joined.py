r"""Tokens that belong together: indices, primes, numbers with a base, `{1 \over 2}`, products of vectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rewards.math.kinds import CLOSING, OPENING, Kind, Token

_INFIX = {r"\over": r"\frac", r"\choose": r"\binom"}
_MAX_INFIX = 16
"""`\\over` and `\\choose` in one answer."""
_MAX_INDEX = 8
"""Tokens of the longest index."""
_OPEN, _CLOSE = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
_PRIME = Token(Kind.OPERATOR, "'")
_DIGITS = re.compile(r"[0-9A-Fa-f]+")
_CONSTANTS = frozenset({"constant", "const", "C"})
"""What a constant of integration is called in words, or set upright."""
_OF_SEVERAL = frozenset({"gcd", "lcm", "max", "min"})


def joined(found: list[Token]) -> list[Token]:
    """All of it, in order. Linear in the number of tokens, and nothing at all where nothing calls for it."""
    texts = {token.text for token in found}
    if not texts.isdisjoint(_INFIX):
        found = _infixes(found)
    if not texts.isdisjoint(("'", r"\prime")):
        found = _primes(found)
    if "_" in texts or any(token.kind in (Kind.WORD, Kind.TEXT) for token in found):
        found = _subscripts(found)
    return _vectors(found) if any(token.mark == "times" for token in found) else found


def _infixes(found: list[Token]) -> list[Token]:
    r"""`{1 \over 2}` and `1 \over 2` as `\frac{1}{2}`, `{n \choose k}` as `\binom{n}{k}`."""
    for _ in range(_MAX_INFIX):
        position = next((n for n, token in enumerate(found) if token.text in _INFIX), None)
        if position is None:
            break
        start, end = _start(found, position), _end(found, position)
        command = Token(Kind.COMMAND, _INFIX[found[position].text], found[start].spaced)
        above, below = found[start:position], found[position + 1 : end]
        if _is_plain_group(found, start - 1, end):
            start, end = start - 1, end + 1
        found = [*found[:start], command, _OPEN, *above, _CLOSE, _OPEN, *below, _CLOSE, *found[end:]]
    return found


def _is_plain_group(found: Sequence[Token], opened: int, closed: int) -> bool:
    """Whether these braces are nobody's argument, so that they may go: a mixed number is `2{1 \\over 3}`."""
    if opened < 0 or closed >= len(found) or found[opened].text != "{" or found[closed].text != "}":
        return False
    before = found[opened - 1] if opened else None
    return before is None or (before.kind is not Kind.COMMAND and before.text not in ("^", "_", "}"))


def _start(found: Sequence[Token], position: int) -> int:
    """Where the group around a position begins, behind its bracket."""
    depth = 0
    for index in range(position - 1, -1, -1):
        depth += (found[index].text in CLOSING) - (found[index].text in OPENING)
        if depth < 0 or (depth == 0 and found[index].text in ("=", ",")):
            return index + 1
    return 0


def _end(found: Sequence[Token], position: int) -> int:
    """Where the group around a position ends."""
    depth = 0
    for index in range(position + 1, len(found)):
        depth += (found[index].text in OPENING) - (found[index].text in CLOSING)
        if depth < 0 or (depth == 0 and found[index].text in ("=", ",")):
            return index
    return len(found)


def _primes(found: list[Token]) -> list[Token]:
    r"""`f'`, `f^{\prime\prime}` and `A'` are names; behind a number a prime stays a sign of its own."""
    result: list[Token] = []
    position = 0
    while position < len(found):
        count, length = _prime(found, position)
        if not count:
            result.append(found[position])
            position += 1
            continue
        before = result[-1] if result else None
        if before is not None and (before.kind is Kind.SYMBOL or (before.kind is Kind.WORD and before.text.isupper())):
            result[-1] = replace(before, text=before.text + "'" * count)
        else:
            result += [_PRIME] * count
        position += length
    return result


def _prime(found: Sequence[Token], position: int) -> tuple[int, int]:
    r"""How many primes stand here, and how many tokens they are: `'`, `\prime`, `^ \prime`, `^ { \prime \prime }`."""
    token = found[position]
    if token.text in ("'", r"\prime"):
        return 1, 1
    if token.text != "^" or position + 1 >= len(found):
        return 0, 1
    if found[position + 1].text == r"\prime":
        return 1, 2
    count = 0
    while [t.text for t in found[position + 2 + count : position + 3 + count]] == [r"\prime"]:
        count += 1
    closed = found[position + 1].text == "{" and [t.text for t in found[position + 2 + count :][:1]] == ["}"]
    return (count, count + 3) if count and closed else (0, 1)


def _subscripts(found: list[Token]) -> list[Token]:
    """Join a letter with its index, and digits in brackets with their base: `x_{1}`, `(1011)_2`."""
    result: list[Token] = []
    position = 0
    while position < len(found):
        token = found[position]
        position += 1
        if token.kind in (Kind.WORD, Kind.TEXT) and result and result[-1].text == "+" and token.text in _CONSTANTS:
            token = Token(Kind.SYMBOL, "C", token.spaced)
        based = [t.text.lower() for t in found[position - 1 : position + 1]]
        if based[:1] == ["base"] and based[-1].isdigit() and result and result[-1].text.isalnum():
            result[-1] = Token(Kind.NUMBER, f"{result[-1].text}_{based[-1]}", result[-1].spaced)  # 101 base 2
            position += 1
            continue
        if token.text.lower() in ("degree", "degrees") and result and result[-1].kind is Kind.NUMBER:
            token = Token(Kind.OPERATOR, "deg", token.spaced)
        if token.text in _OF_SEVERAL and position < len(found) and found[position].text == "(":
            token = Token(Kind.COMMAND, rf"\{token.text}", token.spaced)
        if token.text == "_" and result:
            index = _index(found, position)
            if index is not None:
                name, end = index
                before = result[-1]
                if before.kind in (Kind.SYMBOL, Kind.WORD):
                    result[-1] = Token(Kind.SYMBOL, f"{before.text}_{name}", before.spaced, before.mark)
                    position = end
                    continue
                if (digits := _bracketed_digits(result)) is not None and name.isdigit():
                    start = len(result) - digits[1]
                    result[start:] = [Token(Kind.NUMBER, f"{digits[0].upper()}_{name}", result[start].spaced)]
                    position = end
                    continue
        result.append(token)
    return result


def _index(found: Sequence[Token], position: int) -> tuple[str, int] | None:
    """The text of the index that begins here, and where it ends."""
    if position >= len(found):
        return None
    if found[position].text != "{":
        return found[position].text, position + 1
    last = min(position + 1 + _MAX_INDEX, len(found))
    end = next((i for i in range(position + 1, last) if found[i].text == "}"), None)
    return None if end is None else ("".join(t.text for t in found[position + 1 : end]), end + 1)


def _bracketed_digits(result: Sequence[Token]) -> tuple[str, int] | None:
    """The digits in the brackets that end here, and how many tokens they are."""
    if result[-1].text != ")":
        return None
    start = next((i for i in range(len(result) - 1, max(-1, len(result) - 6), -1) if result[i].text == "("), None)
    if start is None:
        return None
    digits = "".join(token.text for token in result[start + 1 : -1])
    return (digits, len(result) - start) if _DIGITS.fullmatch(digits) else None


def _vectors(found: list[Token]) -> list[Token]:
    r"""`\times` between vectors is not the product of numbers: `\vec a \times \vec b`."""
    for position in range(1, len(found) - 1):
        before, here, after = found[position - 1 : position + 2]
        if here.mark != "times" or "vector" not in (before.mark, after.mark):
            continue
        if (before.mark == "vector" or before.text in CLOSING) and (after.mark == "vector" or after.text in OPENING):
            found[position] = Token(Kind.OPERATOR, "cross", here.spaced)
    return found
