r"""Gold answers that can pay nobody: what stands in a data set where a final answer should.

    proof, N/A, See solution.                         a word in place of an answer
    ["70"]                                            a list written as text
    We have 3+4=7. So the answer is 7.                a whole worked solution
    \frac{1, x^                                       text that breaks off

A grader that compares such a gold with itself finds them equal, so a look at equality alone calls it good; but nobody
who solves the problem will ever write it.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from functools import lru_cache

from rewards.text import says_something

COMPARING = ("exact", "judge")
"""Rewards that take any text for a gold answer."""
_NOTHING = frozenset(
    (
        *("tbd", "todo", "omitted", "placeholder", "not available", "not applicable", "not given", "not provided"),
        *("no answer", "not found", "notfound", "none given", "none provided", "proof problem", "proof question"),
        *("证明略", "答案略", "见解析", "证明见解析", "答案见解析", "暂无"),
    )
)
"""What stands in place of an answer of any kind."""
_NO_MATHEMATICS = _NOTHING | {"proof", "prove", "solution", "answer", "nan", "null", "nil", "证明", "略"}
"""The same for mathematics: elsewhere `proof` may be the word that was asked for."""
_NOT_APPLICABLE = re.compile(r"[Nn]\s*/\s*[Aa]|N\.?\s*A\.?|n\.\s*a\.")
"""`Na` is sodium."""
_REFERENCE = re.compile(
    r"(?:please )?(?:see|refer to|as shown in|shown in)\b.{0,40}\b(?:proof|solution|explanation|above|below|"
    r"figure|image|text|answer key)\b.{0,20}"
    r"|(?:the )?proof (?:is|is given|follows|omitted|required|needed|by|of|that)\b.*"
    r"|(?:prove|show) that\b.*",
    re.IGNORECASE | re.DOTALL,
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[^{}]*\})?")
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\.")
_PROSE_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE = re.compile(r"(?<!\d)[.!?](?:\s|$)|\.(?=\s+[A-Z])|[。！？]")
_REASONING = re.compile(
    r"\b(?:therefore|thus|hence|so the answer|we (?:have|get|obtain|find|know|need|see|can)|let us|note that|"
    r"it follows|let .{1,20} be|substitut\w+|first[ ,]|solution:)|所以|因此|由题意|解得|解[：:]|故答案",
    re.IGNORECASE,
)
_BROKEN_OFF = re.compile(
    r"[\^_=/]\s*\$*$|\\(?:[dt]?frac|sqrt|text|mathrm|mathbf|boxed|fbox|[dt]?binom)\s*(?:\{\s*\})?\s*\$*$"
    r"|\\(?:[dt]?frac|[dt]?binom)\s*\{[^{}]*\}\s*\$*$"
)
_WITHOUT_CONTENT = (r"\boxed", r"\fbox", r"\text", r"\left", r"\right")
_REASONED_WORDS = 4
"""Words of prose from which on a text with "therefore" or "we get" is an argument, not an answer."""
_LINE_WORDS = 3
"""The same of several lines with an equation in them."""
_TWO_SENTENCES_WORDS = 12
_LONG_WORDS = 25
"""Words of a sentence that no final answer needs, even one in words."""


@lru_cache(maxsize=4096)
def unpayable(gold: str) -> str | None:
    """Why nobody could be paid for a gold answer, with what to do about it; `None` if somebody could.

    Args:
        gold: the gold's final answer as text: what is boxed, or follows `####`, if it is a solution with such a mark.
    """
    text = gold.strip()
    if not says_something(text):
        return "the gold is empty"
    if (placeholder := stands_for_nothing(text, _NO_MATHEMATICS)) is not None:
        return placeholder
    if _is_worked(text):
        return f"the gold {_short(text)} is a worked solution: give its final answer alone, or box it"
    if _is_broken(text):
        return f"the gold {_short(text)} cannot be read: it breaks off, or holds no answer"
    return None


def stands_for_nothing(text: str, words: frozenset[str] = _NOTHING) -> str | None:
    """The part of `unpayable` that holds for answers of every kind: words in place of one, and lists as text."""
    plain = _COMMAND.sub(" ", text).strip(" {}.$*")
    bare = " ".join(re.sub(r"[^\w ]", " ", plain).split()).casefold()
    if bare in words or _NOT_APPLICABLE.fullmatch(plain) or _REFERENCE.fullmatch(plain):
        return f"the gold {_short(text)} is a word in place of an answer: leave the row out"
    if _is_list(text):
        return f"the gold {_short(text)} is a list written as text: give the list itself, or its entry"
    return None


def _is_list(text: str) -> bool:
    """Whether it is a list (or a mapping) of texts as JSON or Python write it."""
    if not re.match(r"[\[{(]\s*[\"']", text):
        return False
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(found, list | tuple | dict | set)


def _is_worked(text: str) -> bool:
    prose = _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text))
    words = len(_PROSE_WORD.findall(prose))
    han = sum("\u4e00" <= char <= "\u9fff" for char in text)
    words = words if han == 0 else words + han // 2
    lines = [line for line in _ENVIRONMENT.sub("", text).splitlines() if says_something(line)]
    return (
        (words >= _REASONED_WORDS and _REASONING.search(prose) is not None)
        or (words >= _TWO_SENTENCES_WORDS and len(_SENTENCE.findall(prose)) > 1)
        or (len(lines) > 1 and words >= _LINE_WORDS and "=" in text)
        or (words >= _LONG_WORDS and _SENTENCE.search(prose) is not None)
    )


def _is_broken(text: str) -> bool:
    unescaped = re.sub(r"\\[{}\\]", "", text)
    pairs = (("{", "}"), (r"\begin", r"\end"))
    if any(unescaped.count(one) != unescaped.count(other) for one, other in pairs) or _BROKEN_OFF.search(text):
        return True
    named = [
        name for name in _COMMAND.findall(text) if name not in (r"\boxed", r"\fbox", r"\text", r"\left", r"\right")
    ]
    return not named and not any(
        unicodedata.category(char)[0] in "LN" or char in "∅∞" for char in _COMMAND.sub("", text)
    )


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 50 else shown[:50] + "…")
