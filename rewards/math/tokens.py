r"""LaTeX, Unicode and plain text as one small token language.

`tokens(r"\dfrac12\,\text{ cm}")` and `tokens("½ cm")` say the same thing. Everything here is linear in the length of
the text: one pass of one regular expression without nested repetition, and one pass over its matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from rewards.math.joined import joined
from rewards.math.kinds import CLOSING, MAX_DEPTH, OPENING, Kind, Token, Tokens, TooDeepError
from rewards.math.layout import clean
from rewards.math.notation import ALIASES, BASES, FONTS, GREEK, OPERATORS, PLAIN, TEXTS, VECTORS

_GAP = r"(?:,|\{,\}|\\,|\\;|\\:|\\ |\u2009|\u202f|\u00a0| |'|_)"
_NUMBER = (
    rf"(?:(?<![\d.,_^])[1-9]\d{{0,2}}(?P<gap>{_GAP})\d{{3}}(?:(?P=gap)\d{{3}})*(?![\d])(?!,\d)"  # 1,234,567
    r"|(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])"  # 1.234.567
    r"|(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?=,\d)(?!,\d*,)"  # 1.234,56
    r"|\d+|(?=\.\d))"
)
_MASTER = re.compile(
    r"(?P<space>(?:\s|~|\\[,;:> ]|\\$|\\[()\[\]]|\\(?:quad|qquad|thinspace|enspace|hfill|newline)(?![a-zA-Z]))+)"
    r"|(?P<nothing>\\(?:left|right)(?![a-zA-Z])(?:\s*\.)?|\\(?:middle|[bB]igg?[lrm]?|displaystyle|textstyle"
    r"|script(?:script)?style|limits|nolimits|boldsymbol|bf|rm|it|sf|tt|(?:math)?strut|tiny|(?:script|footnote|normal)size"
    r"|small|[lL]arge|LARGE|[hH]uge|boldmath|bfseries|itshape|upshape|nonumber|notag|allowbreak|relax|smash"
    r"|math(?:ord|bin|rel|open|close|inner|punct))(?![a-zA-Z]))"
    r"|(?P<base>(?<![A-Za-z0-9.,])(?:(?=[A-Z]*\d|[A-F]{2,}_\{\(?16)[0-9A-Z]+|(?:\d|[a-f](?=[a-f]))[0-9a-f]*(?=_\{\(?16\)?\}))"
    r"_(?!\{?\(?0)(?:\{\\(?:text|mathrm|mbox)\{[a-z]+\}\}|\\(?:text|mbox)\{[a-z]+\}|\{[a-z]{3,7}\}|\{\(?\d+\)?\}|\d+))"
    rf"|(?P<number>(?P<whole>{_NUMBER})(?P<part>(?:\.|\{{,\}}(?=\d)|(?<=\.\d\d\d),(?=\d))"
    r"(?:\d*(?:\\overline|\\bar|\\dot)\{?\d+\}?|\d*\(\d+\)|\d+(?:\.\.\.|\\l?dots|\\cdots)?))?"
    r"(?P<power>[eE][+-]?\d{1,6}(?![A-Za-z0-9]))?)"
    r"|(?P<degree>\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degrees?(?![a-zA-Z])|\\circ(?![a-zA-Z]))"
    r"|(?P<row>\\\\(?:\s*\[-?[\d.]{1,6}(?:pt|em|ex|mm|cm)\])?)"
    r"|(?P<environment>\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}(?:\s*\{[clr| ]*\})?)"
    r"|(?P<command>\\[a-zA-Z]+\*?|\\.)"
    r"|(?P<letters>o'clock|[A-Za-z]{2,}'[a-z]{1,2}(?![a-z])|[A-Za-z]+)"
    r"|(?P<operator>\*\*|<=|>=|!=|==|:=|->|\.\.\.|.)",
    re.DOTALL,
)


def tokens(text: str) -> Tokens:
    """Read text into tokens. Linear; never fails for strange input, which becomes operators nobody understands.

    Raises:
        TooDeepError: groups are nested more than `MAX_DEPTH` deep, or characters unfold into very many.
    """
    cleaned = clean(text)
    if len(cleaned) > 4 * len(text) + 64:
        raise TooDeepError("characters that stand for many others")
    found = joined(_tokens(cleaned, 0))
    return tuple(_braced(found, _closers(found), 0, len(found)))


def _tokens(text: str, depth: int) -> list[Token]:
    if depth > MAX_DEPTH:
        raise TooDeepError("groups are nested too deep")
    result: list[Token] = []
    position, spaced = 0, False
    while (found := _MASTER.match(text, position)) is not None:
        position, kind, raw = found.end(), found.lastgroup, found.group()
        if kind == "space":
            spaced = True
            continue
        if kind == "nothing":
            continue
        if kind == "command" and raw in _WITH_ASIDE:
            _, position = _argument(text, position)
            continue
        if kind == "command" and raw in _WITH_CONTENT:
            content, position = _argument(text, position)
            is_text = raw in TEXTS and not (raw == r"\mathrm" and content in ("e", "i", "d"))
            inner = _in_text(content, depth) if is_text else _tokens(content, depth + 1)
            if raw in VECTORS:
                inner = [replace(t, mark="vector") for t in inner]
            if raw == r"\mathbb" and not content.strip().isdigit():
                inner = [Token(Kind.COMMAND, rf"\mathbb {content.strip()}")]
            spaced = spaced or content[:1].isspace()
            result += [replace(t, spaced=spaced or t.spaced) if n == 0 else t for n, t in enumerate(inner)]
            spaced = content[-1:].isspace()
            continue
        result += _numbers(found, spaced) if kind in _NUMBERS else _one(str(kind), raw, spaced)
        spaced = False
    return result


_WITH_ASIDE = frozenset({r"\color", r"\textcolor", r"\colorbox", r"\overset", r"\underset", r"\stackrel"})
"""Commands whose first argument is a colour, or stands above or below."""
_WITH_CONTENT = TEXTS | FONTS | {r"\mathbb"}
_NUMBERS = frozenset({"number", "whole", "part", "power", "gap"})
"""The groups of `_MASTER` within `number`, whichever matched last."""
_BEHIND_A_LETTER = frozenset({"sqrt", "sin", "cos", "tan", "ln", "log", "pi"})


def _numbers(found: re.Match[str], spaced: bool) -> Iterator[Token]:
    raw = found.group()
    if raw.isdigit():
        yield Token(Kind.NUMBER, raw, spaced)
    elif found["gap"] == "," and "." not in raw and _in_brackets(found):
        first, *others = raw.split(",")
        yield Token(Kind.NUMBER, first, spaced)
        for other in others:
            yield Token(Kind.OPERATOR, ",")
            yield Token(Kind.NUMBER, other)
    else:
        yield Token(Kind.NUMBER, _number(found), spaced)


@lru_cache(maxsize=2048)
def _one(kind: str, raw: str, spaced: bool) -> tuple[Token, ...]:
    """What is no number, and the same wherever it stands: it is remembered."""
    return tuple(_read(kind, raw, spaced))


def _read(kind: str, raw: str, spaced: bool) -> Iterator[Token]:
    if kind == "base":
        digits, _, base = raw.partition("_")
        base = re.sub(r"\\text|\\mathrm|\\mbox|[{}()]", "", base)
        yield Token(Kind.NUMBER, f"{digits.upper()}_{BASES.get(base, base)}", spaced)
    elif kind == "degree":
        yield Token(Kind.OPERATOR, "deg", spaced)
    elif kind == "row":
        yield Token(Kind.COMMAND, "\\\\", spaced)
    elif kind == "environment":
        name = raw[raw.index("{") + 1 : raw.index("}")].rstrip("*")
        yield Token(Kind.COMMAND, f"{raw[: raw.index('{')].strip()} {name}", spaced)
    elif kind == "letters":
        if raw in PLAIN:
            yield Token(Kind.SYMBOL if PLAIN[raw] in GREEK else Kind.COMMAND, PLAIN[raw], spaced)
        elif raw[1:] in _BEHIND_A_LETTER:  # xsqrt(2)
            yield Token(Kind.SYMBOL, raw[0], spaced)
            yield Token(Kind.COMMAND, PLAIN[raw[1:]])
        else:
            yield Token(Kind.SYMBOL if len(raw) == 1 else Kind.WORD, raw, spaced)
    elif (raw := ALIASES.get(raw, raw)) in GREEK:
        yield Token(Kind.SYMBOL, raw, spaced)
    elif raw in OPERATORS:
        yield Token(Kind.OPERATOR, OPERATORS[raw], spaced, "times" if raw == r"\times" else "")
    else:
        yield Token(Kind.COMMAND if kind == "command" else Kind.OPERATOR, raw, spaced)


def _in_brackets(found: re.Match[str]) -> bool:
    """Whether `1,234` stands alone in brackets, as a tuple would."""
    before, after = found.string[: found.start()].rstrip(), found.string[found.end() :].lstrip()
    return before.endswith(("(", "[", r"\{")) and after.startswith((")", "]", r"\}", r"\right"))


def _number(found: re.Match[str]) -> str:
    """A number in canonical spelling: no separators, a point, repeating digits in parentheses."""
    whole = re.sub(r"\D", "", found["whole"]) or "0"
    part = (found["part"] or "").replace("{,}", ".").replace(",", ".")
    power = found["power"] or ""
    if (bar := re.search(r"(?:\\overline|\\bar|\\dot)\{?(\d+)\}?", part)) is not None:
        part = f"{part[: bar.start()]}({bar[1]})"
    elif part.endswith(("...", "dots")):
        part = _repeating(re.sub(r"\D", "", part))
    return f"{whole}{part}{power.lower()}"


def _repeating(digits: str) -> str:
    """`333` (of `0.333…`) is `.(3)`, `1666` is `.1(6)`; digits that show no period stay marked as unknown."""
    for period in range(1, len(digits) // 2 + 1):
        times = 3 if period == 1 else 2
        tail = digits[-period:]
        if len(digits) >= period * times and digits.endswith(tail * times):
            head = digits
            while head.endswith(tail):
                head = head[:-period]
            return f".{head}({tail})"
    return f".{digits}..."


def _argument(text: str, position: int) -> tuple[str, int]:
    """The brace group (or single character) that follows a command, and where it ends."""
    while position < len(text) and text[position].isspace():
        position += 1
    if position >= len(text) or text[position] != "{":
        return text[position : position + 1], min(position + 1, len(text))
    end = matching_brace(text, position)
    return (text[position + 1 :], len(text)) if end is None else (text[position + 1 : end], end + 1)


def matching_brace(text: str, start: int, limit: int | None = None) -> int | None:
    r"""Index of the `}` that closes the `{` at `start`, ignoring `\{` and `\}`; `None` if none does before `limit`."""
    depth, position = 0, start
    end = len(text) if limit is None else min(len(text), limit)
    while position < end:
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def _in_text(content: str, depth: int) -> list[Token]:
    r"""The inside of `\text{…}`: its words are words, whatever letters they have; anything else is read as usual."""
    return [
        replace(t, kind=Kind.TEXT) if t.kind in (Kind.SYMBOL, Kind.WORD) and not t.text.startswith("\\") else t
        for t in _tokens(content, depth + 1)
    ]


_BRACED = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, "^": 1}
"""Commands whose arguments may come without braces, and how many they take."""


def _braced(found: list[Token], closers: dict[int, int], start: int, end: int) -> Iterator[Token]:
    r"""Put braces around bare arguments: `\frac12` becomes `\frac{1}{2}`, `x^2` becomes `x^{2}`."""
    position = start
    while position < end:
        token = found[position]
        position += 1
        yield token
        for _ in range(_BRACED.get(token.text, 0)):
            if position >= end:
                break
            bare, follower = found[position], found[position + 1 : position + 2]
            if bare.text == "{":
                closer = closers.get(position, end)
                if closer >= end:
                    break
                yield bare
                yield from _braced(found, closers, position + 1, closer)
                yield found[closer]
                position = closer + 1
            elif bare.kind is Kind.NUMBER and token.text != "^" and len(bare.text) > 1 and bare.text.isdigit():
                yield from (_OPEN, replace(bare, text=bare.text[0]), _CLOSE)
                found[position] = replace(bare, text=bare.text[1:])
            elif bare.kind is Kind.WORD and not bare.text.isupper():
                yield from (_OPEN, Token(Kind.SYMBOL, bare.text[0]), _CLOSE)
                rest = bare.text[1:]
                found[position] = Token(Kind.SYMBOL if len(rest) == 1 else Kind.WORD, rest)
            elif bare.kind in (Kind.NUMBER, Kind.SYMBOL) or (bare.text in _BARE_COMMANDS and token.text != r"\sqrt"):
                yield from (_OPEN, bare, _CLOSE)
                position += 1
            elif token.text == "^" and bare.text == "-" and follower:
                yield from (_OPEN, bare, follower[0], _CLOSE)
                position += 2
            else:
                break


def _closers(found: Sequence[Token]) -> dict[int, int]:
    """Where each bracket that is closed at all is closed, whatever its shape."""
    opened: list[int] = []
    result: dict[int, int] = {}
    for position, token in enumerate(found):
        if token.text in OPENING:
            opened.append(position)
        elif token.text in CLOSING and opened:
            result[opened.pop()] = position
    if len(opened) > MAX_DEPTH:
        raise TooDeepError("brackets are left open")
    return result


_OPEN, _CLOSE = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
_BARE_COMMANDS = frozenset({r"\pi", r"\infty"})
