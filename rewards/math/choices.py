"""Answers to multiple-choice questions."""

from __future__ import annotations

import re

from rewards.math.kinds import Kind
from rewards.math.shapes import Group, Quantity, Shape, Words

_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?[\[(]?\s*([A-Ha-h])\s*(?:([)\].:])\s*(.*))?", re.IGNORECASE | re.DOTALL
)
_MARKUP = re.compile(
    r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|boxed|displaystyle|textstyle|left|right|q?quad|therefore|underline"
    r"|[lL]arge|LARGE|[hH]uge|small|tiny|bf|it|rm)(?![a-zA-Z])"
    r"|\\[ ,;:!]|[{}$*~]"
)
_HEDGE = re.compile(r"\b(?:or|and|not|nor|wrong|incorrect|either|neither)\b|\(?\b[A-H]\b\)", re.IGNORECASE)


def choice(text: str) -> tuple[str, str] | None:
    r"""Letter and text of a multiple-choice answer (`C`, `(C)`, `\textbf{(C)}\ 12`, `C) 12`), or `None`."""
    flat = _MARKUP.sub(" ", text).strip().rstrip(".,")
    found = _CHOICE.fullmatch(flat.strip())
    if found is None or (found[3] and _HEDGE.search(found[3])) or len(flat) > 200:
        return None
    if found[2] == ":" and (found[1].islower() or len(found[3]) == 1):
        return None  # a ratio of letters
    return found[1].upper(), found[3] or ""


def letters_chosen(gold: Shape, answer: Shape) -> bool | None:
    """Whether `AC` is `A, C`: several choices as one word here, as a list there; `None` if they are not."""
    for word, listed in ((gold, answer), (answer, gold)):
        chosen, letters = _in_a_word(word), _in_a_list(listed)
        if chosen is not None and letters is not None:
            return chosen == letters
    return None


def _in_a_word(shape: Shape) -> list[str] | None:
    written = shape.written if isinstance(shape, Quantity) else ()
    text = written[0].text if len(written) == 1 and written[0].kind in (Kind.WORD, Kind.TEXT) else ""
    if isinstance(shape, Words) and len(shape.words) == 1:
        text = shape.words[0].upper()
    in_order = list(text) == sorted(set(text))
    return list(text) if len(text) > 1 and in_order and text <= "H" * len(text) and text.isupper() else None


def _in_a_list(shape: Shape) -> list[str] | None:
    """The letters of a list, in their order."""
    if not isinstance(shape, Group) or shape.brackets not in ("", "{}"):
        return None
    letters = []
    for item in shape.items:
        text = item.words[0].upper() if isinstance(item, Words) and len(item.words) == 1 else ""
        if isinstance(item, Quantity) and len(item.written) == 1:
            text = item.written[0].text
        if len(text) != 1 or not "A" <= text <= "H":
            return None
        letters.append(text)
    return sorted(letters)
