r"""LaTeX, Unicode and plain text as one small token language.

`tokens(r"\dfrac12\,\text{ cm}")` and `tokens("½ cm")` say the same thing. Everything here is linear in the length of
the text: one pass of one regular expression without nested repetition, and one pass over its matches.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum


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
    """One token; `spaced` says that white space came before it, and is no part of its identity."""

    kind: Kind
    text: str
    spaced: bool = field(default=False, compare=False)


Tokens = tuple[Token, ...]

MAX_DEPTH = 24
"""Nesting of groups beyond which nothing is read: no honest answer needs it, and Python's stack is finite."""


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


class TooDeepError(ValueError):
    """Braces are nested deeper than any honest answer needs."""


_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
        "∙": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "∅": r"\emptyset ",
        "≈": r"\approx ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
        "∖": r"\setminus ", "〈": r"\langle ", "〉": r"\rangle ", "⟨": r"\langle ", "⟩": r"\rangle ", "…": "...",
        "¹": "^{1}", "²": "^{2}", "³": "^{3}", "⁴": "^{4}", "⁵": "^{5}", "⁶": "^{6}", "⁷": "^{7}", "⁸": "^{8}",
        "⁹": "^{9}", "⁰": "^{0}", "⁻": "^-", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}",
        "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}",
        "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "₀": "_0", "₁": "_1", "₂": "_2", "₃": "_3", "₄": "_4", "₅": "_5",
        "₆": "_6", "₇": "_7", "₈": "_8", "₉": "_9", "’": "'", "‘": "'", "“": '"', "”": '"', "∧": r"\land ",
        "∨": r"\lor ",
    }
)  # fmt: skip

_GAP = r"(?:,|\{,\}|\\,|\\;|\\:|\\ |\u2009|\u202f|\u00a0| |'|_)"
_NUMBER = (
    rf"(?:(?<![\d.,])[1-9]\d{{0,2}}(?P<gap>{_GAP})\d{{3}}(?:(?P=gap)\d{{3}})*(?![\d])(?!,\d)"  # 1,234,567
    r"|(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])"  # 1.234.567
    r"|(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?=,\d)(?!,\d*,)"  # 1.234,56
    r"|\d+|(?=\.\d))"
)
_MASTER = re.compile(
    r"(?P<space>(?:\s|~|\\[,;:> ]|\\(?:quad|qquad|thinspace|enspace|hfill|newline)(?![a-zA-Z]))+)"
    r"|(?P<nothing>\\!|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|boldsymbol|bf|rm|it|mathstrut"
    r"|hphantom|phantom)(?![a-zA-Z]))"
    r"|(?P<base>(?<![A-Za-z0-9.,])(?=[A-Z]*\d)[0-9A-Z]+_(?:\{\\(?:text|mathrm)\{[a-z]+\}\}|\\text\{[a-z]+\}|\{[a-z]{3,7}\}|\{\d+\}|\d+))"
    rf"|(?P<number>(?P<whole>{_NUMBER})(?P<part>(?:\.|\{{,\}}(?=\d)|(?<=\.\d\d\d),(?=\d))"
    r"(?:\d*(?:\\overline|\\bar|\\dot)\{?\d+\}?|\d*\(\d+\)|\d+(?:\.\.\.|\\l?dots|\\cdots)?))?"
    r"(?P<power>[eE][+-]?\d{1,6}(?![A-Za-z0-9]))?)"
    r"|(?P<degree>\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degrees?(?![a-zA-Z])|\\circ(?![a-zA-Z]))"
    r"|(?P<environment>\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}(?:\{[clr|]*\})?)"
    r"|(?P<command>\\[a-zA-Z]+\*?|\\.)"
    r"|(?P<letters>[A-Za-z]+(?:'(?=[a-z]))?[a-z]*)"
    r"|(?P<operator>\*\*|<=|>=|!=|==|:=|->|\.\.\.|.)",
    re.DOTALL,
)

_ALIASES = {
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac", r"\frac"], r"\frac"),
    **dict.fromkeys([r"\dbinom", r"\tbinom", r"\binom"], r"\binom"),
    **dict.fromkeys([r"\lbrace", r"\{"], r"\{"),
    **dict.fromkeys([r"\rbrace", r"\}"], r"\}"),
    **dict.fromkeys([r"\langle", r"\lang"], r"\langle"),
    **dict.fromkeys([r"\rangle", r"\rang"], r"\rangle"),
    **dict.fromkeys([r"\epsilon", r"\varepsilon"], r"\epsilon"),
    **dict.fromkeys([r"\phi", r"\varphi"], r"\phi"),
    **dict.fromkeys([r"\emptyset", r"\varnothing"], r"\emptyset"),
    **dict.fromkeys([r"\lvert", r"\rvert", r"\vert", r"\mid"], "|"),
}
_OPERATORS = {
    **dict.fromkeys([r"\leq", r"\le", r"\leqslant", r"\leqq", "<="], "<="),
    **dict.fromkeys([r"\geq", r"\ge", r"\geqslant", r"\geqq", ">="], ">="),
    **dict.fromkeys([r"\lt", "<"], "<"),
    **dict.fromkeys([r"\gt", ">"], ">"),
    **dict.fromkeys([r"\neq", r"\ne", "!="], "!="),
    **dict.fromkeys([r"\approx", r"\thickapprox", r"\simeq", r"\doteq"], "~"),
    **dict.fromkeys([r"\times", r"\cdot", r"\ast", "*"], "*"),
    **dict.fromkeys([r"\div", r"\slash", "/"], "/"),
    **dict.fromkeys([r"\pm", "+-"], r"\pm"),
    **dict.fromkeys([r"\%", "%"], "%"),
    **dict.fromkeys([r"\$", "$"], "$"),
    **dict.fromkeys(["**", "^"], "^"),
    **dict.fromkeys(["==", "=", ":=", r"\equiv"], "="),
    **dict.fromkeys([r"\colon", ":"], ":"),
    **dict.fromkeys([r"\lor", r"\vee"], "or"),
    **dict.fromkeys([r"\land", r"\wedge"], "and"),
    **dict.fromkeys([r"\setminus", r"\backslash", r"\smallsetminus"], r"\setminus"),
    **dict.fromkeys([r"\ldots", r"\dots", r"\cdots", "..."], "..."),
    **dict.fromkeys([r"\bigcup", r"\cup"], r"\cup"),
    **dict.fromkeys([r"\to", r"\rightarrow", "->"], r"\to"),
    r"\in": r"\in", r"\mp": r"\mp", r"\cap": r"\cap", r"\|": "|", r"\#": "#", r"\_": "_", r"\&": "&",
    "€": "€", "£": "£", "¥": "¥",
}  # fmt: skip
_TEXTS = words(
    r"\text \textbf \textit \textrm \textsf \texttt \textnormal \mbox \hbox \mathrm \mathsf \mathit \operatorname \emph"
    r" \mathop \mathtt"
)
_FONTS = words(
    r"\mathbf \mathcal \mathfrak \boldsymbol \bm \pmb \vec \overrightarrow \underline \hat \ensuremath \boxed \fbox"
)
_GREEK = words(
    r"\alpha \beta \gamma \delta \epsilon \zeta \eta \theta \iota \kappa \lambda \mu \nu \xi \rho \sigma \tau \phi"
    r" \chi \psi \omega \Gamma \Delta \Theta \Lambda \Sigma \Phi \Psi \Omega \ell"
)
_PLAIN = {
    "sqrt": r"\sqrt", "pi": r"\pi", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "infty": r"\infty",
    "sin": r"\sin", "cos": r"\cos", "tan": r"\tan", "cot": r"\cot", "sec": r"\sec", "csc": r"\csc", "ln": r"\ln",
    "log": r"\log", "exp": r"\exp", "arcsin": r"\arcsin", "arccos": r"\arccos", "arctan": r"\arctan",
    "theta": r"\theta", "alpha": r"\alpha", "beta": r"\beta",
}  # fmt: skip
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16}


def clean(text: str) -> str:
    """Fold Unicode look-alikes into ASCII and LaTeX: full-width and Arabic digits, minus signs, superscripts."""
    text = text.replace(r"\!", "")
    if text.isascii():
        return text
    folded = unicodedata.normalize("NFKC", text.translate(_UNICODE)).translate(_UNICODE)
    return "".join(
        str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c
        for c in folded
        if unicodedata.category(c) not in ("Cf", "Mn", "Cc") or c in "\t\n"
    )


def tokens(text: str) -> Tokens:
    """Read text into tokens. Linear; never fails for strange input, which becomes operators nobody understands.

    Raises:
        TooDeepError: groups are nested more than `MAX_DEPTH` deep.
    """
    return tuple(_braced(list(_subscripts(_tokens(clean(text), 0)))))


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
        if kind == "command" and raw in _TEXTS | _FONTS | {r"\mathbb"}:
            content, position = _argument(text, position)
            inner = _in_text(content, depth) if raw in _TEXTS else _tokens(content, depth + 1)
            if raw == r"\mathbb":
                inner = [Token(Kind.COMMAND, rf"\mathbb {content.strip()}")]
            spaced = spaced or content[:1].isspace()
            result += [replace(t, spaced=spaced or t.spaced) if n == 0 else t for n, t in enumerate(inner)]
            spaced = content[-1:].isspace()
            continue
        result += _one(str(kind), raw, found, spaced)
        spaced = False
    return result


def _one(kind: str, raw: str, found: re.Match[str], spaced: bool) -> Iterator[Token]:
    if kind in ("number", "whole", "part", "power", "gap"):
        if found["gap"] == "," and "." not in raw and _in_brackets(found):
            first, *others = raw.split(",")
            yield Token(Kind.NUMBER, first, spaced)
            for other in others:
                yield Token(Kind.OPERATOR, ",")
                yield Token(Kind.NUMBER, other)
        else:
            yield Token(Kind.NUMBER, _number(found), spaced)
    elif kind == "base":
        digits, _, base = raw.partition("_")
        base = re.sub(r"\\text|\\mathrm|[{}]", "", base)
        yield Token(Kind.NUMBER, f"{digits}_{BASES.get(base, base)}", spaced)
    elif kind == "degree":
        yield Token(Kind.OPERATOR, "deg", spaced)
    elif kind == "environment":
        name = raw[raw.index("{") + 1 : raw.index("}")].rstrip("*")
        yield Token(Kind.COMMAND, f"{raw[: raw.index('{')].strip()} {name}", spaced)
    elif kind == "letters":
        if raw in _PLAIN:
            yield Token(Kind.COMMAND, _PLAIN[raw], spaced)
        else:
            yield Token(Kind.SYMBOL if len(raw) == 1 else Kind.WORD, raw, spaced)
    elif raw in _GREEK:
        yield Token(Kind.SYMBOL, raw, spaced)
    elif (raw := _ALIASES.get(raw, raw)) in _OPERATORS:
        yield Token(Kind.OPERATOR, _OPERATORS[raw], spaced)
    else:
        yield Token(Kind.COMMAND if kind == "command" else Kind.OPERATOR, raw, spaced)


def _in_brackets(found: re.Match[str]) -> bool:
    """Whether `1,234` stands alone in brackets, as a tuple would."""
    before, after = found.string[: found.start()].rstrip()[-1:], found.string[found.end() :].lstrip("\\ ")[:1]
    return before in tuple("([{") and after in tuple(")]}")


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


def _braced(found: list[Token]) -> Iterator[Token]:
    r"""Put braces around bare arguments: `\frac12` becomes `\frac{1}{2}`, `x^2` becomes `x^{2}`."""
    wanted, position = 0, 0
    while position < len(found):
        token = found[position]
        position += 1
        yield token
        wanted = _BRACED.get(token.text, 0)
        while wanted and position < len(found):
            bare = found[position]
            if bare.text == "{":
                end = closing(found, position)
                if end is None:
                    break
                yield bare
                yield from _braced(found[position + 1 : end])
                yield found[end]
                position = end + 1
            elif bare.kind is Kind.NUMBER and token.text != "^" and len(bare.text) > 1 and bare.text.isdigit():
                yield from (_OPEN, replace(bare, text=bare.text[0]), _CLOSE)
                found[position] = replace(bare, text=bare.text[1:])
            elif bare.kind in (Kind.NUMBER, Kind.SYMBOL) or (bare.text in _BARE_COMMANDS and token.text != r"\sqrt"):
                yield from (_OPEN, bare, _CLOSE)
                position += 1
            elif token.text == "^" and bare.text == "-" and position + 1 < len(found):
                yield from (_OPEN, bare, found[position + 1], _CLOSE)
                position += 2
            else:
                break
            wanted -= 1


_OPEN, _CLOSE = Token(Kind.OPERATOR, "{"), Token(Kind.OPERATOR, "}")
_BARE_COMMANDS = frozenset({r"\pi", r"\infty"})


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


def _subscripts(found: list[Token]) -> Iterator[Token]:
    """Join a letter with its subscript: `x _ { 1 }` is the symbol `x_1`."""
    position = 0
    while position < len(found):
        token = found[position]
        position += 1
        if token.kind in (Kind.SYMBOL, Kind.WORD) and position + 1 < len(found) and found[position].text == "_":
            end = position + 2
            if found[position + 1].text == "{":
                closing = next((i for i in range(end, min(end + 8, len(found))) if found[i].text == "}"), None)
                if closing is None:
                    yield token
                    continue
                inner, end = found[end:closing], closing + 1
            else:
                inner = found[position + 1 : end]
            token = Token(Kind.SYMBOL, f"{token.text}_{''.join(t.text for t in inner)}", token.spaced)
            position = end
        yield token
