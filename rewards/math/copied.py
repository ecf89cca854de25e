r"""Whether an answer only repeats the question.

Where the gold is the question's own expression rewritten ("Simplify `\frac{6}{8}`", "Convert `427_8` to base five",
"Evaluate `\binom{8}{4}`"), equality alone pays who copies. An answer that stands in the question, and is not written as
the gold is, is such a copy. Orders and brackets do not count as another way to write, nor does a name in front.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from rewards.math.kinds import Kind, Tokens, TooDeepError, split
from rewards.math.notation import words
from rewards.math.numbers import TooBigError, literal
from rewards.math.tokens import tokens
from rewards.math.tree import letter_by_letter
from rewards.math.trim import trim
from rewards.math.units import split_unit
from rewards.text import plain

QUESTION_COLUMNS = ("problem", "question", "prompt")
_MAX_QUESTION = 8000
"""Characters at the end of a prompt that are looked at: examples may stand before the question."""
_SILENT = words(r"{ } ( ) [ ] \{ \} * cross $ . , ; : & and or")
_WITHOUT_EFFECT = _SILENT | {"+", "0", "1"}
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_RELATIONS = words("= < > <= >= != ~ ,")


def copied(answer: str, gold: str, question: str) -> bool:
    """Whether an answer that equals the gold repeats an expression of the question, in another form than the gold's."""
    try:
        given, wanted = letter_by_letter(tokens(answer)), letter_by_letter(tokens(gold))
        own = {_form(part) for part in _parts(wanted)}
        parts = list(_parts(given))
        return not own & {_form(part) for part in parts} and any(_repeats(part, question) for part in parts)
    except (TooDeepError, TooBigError):
        return False


def question_of(row: Mapping[str, Any]) -> str:
    """The question of a data row: its column `problem`, `question` or `prompt`; empty if it has none."""
    found = next((row[column] for column in QUESTION_COLUMNS if row.get(column)), "")
    return plain(found) if isinstance(found, str | Mapping | Sequence) else ""


def formulas(question: str) -> list[str]:
    """The formulas of a question, between dollar signs or the brackets of LaTeX."""
    return [next(filter(None, found.groups())).strip() for found in _FORMULA.finditer(question[-_MAX_QUESTION:])]


def _parts(written: Tokens) -> Iterator[Tokens]:
    """All of an answer, and what stands behind its last `=`; both without units."""
    whole = trim(written)
    sides = split(whole, ("=",))
    for part in (whole, sides[-1]) if len(sides) > 1 else (whole,):
        if part:
            yield part
            value, unit = split_unit(part)
            if unit is not None and value:
                yield value


def _repeats(part: Tokens, question: str) -> bool:
    """Whether the question has these tokens in a row, or an expression of just these; a whole number is no copy."""
    if all(token.kind in (Kind.WORD, Kind.TEXT, Kind.SYMBOL) for token in part) or _is_whole(part):
        return False
    asked, expressions = _read(question[-_MAX_QUESTION:])
    form = _form(part)
    return _row(part) in asked or (bool(form) and form in expressions)


def _is_whole(part: Tokens) -> bool:
    """A whole number, with its sign and no unit or base."""
    numbers = [token for token in part if token.text not in ("-", "+", "$")]
    return len(numbers) == 1 and numbers[0].text.isdigit()


def _row(part: Tokens) -> str:
    return f" {' '.join(_text(token.text) for token in part if token.text not in _SILENT)} "


def _text(text: str) -> str:
    value = literal(text) if text[0].isdigit() and "_" not in text else None
    return text if value is None else str(value)


def _form(part: Tokens) -> frozenset[tuple[str, int]]:
    """What an expression is made of, whatever its order; a factor of one and a term of zero are nothing."""
    texts = (
        r"\frac" if token.text == "/" else _text(token.text) for token in part if token.text not in _WITHOUT_EFFECT
    )
    return frozenset(Counter(texts).items())


@lru_cache(maxsize=256)
def _read(question: str) -> tuple[str, frozenset[frozenset[tuple[str, int]]]]:
    """The question's tokens in a row, and what each side of each of its formulas is made of."""
    forms = set()
    for formula in formulas(question):
        try:
            written = letter_by_letter(tokens(formula))
        except TooDeepError:
            continue
        forms.add(_form(written))
        forms |= {_form(side) for side in split(written, _RELATIONS)}
    try:
        return _row(letter_by_letter(tokens(question))), frozenset(forms)
    except TooDeepError:
        return "", frozenset(forms)
