"""Answers to multiple-choice questions."""

from __future__ import annotations

import re

_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?[\[(]?\s*([A-Ha-h])\s*(?:([)\].:])\s*(.*))?", re.IGNORECASE | re.DOTALL
)
_MARKUP = re.compile(
    r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|boxed|displaystyle|textstyle|left|right|q?quad)(?![a-zA-Z])"
    r"|\\[ ,;:!]|[{}$*~]"
)
_HEDGE = re.compile(r"\b(?:or|and|not|nor|wrong|incorrect|either|neither)\b|\(?\b[A-H]\b\)", re.IGNORECASE)


def choice(text: str) -> tuple[str, str] | None:
    r"""Letter and text of a multiple-choice answer (`C`, `(C)`, `\textbf{(C)}\ 12`, `C) 12`), or `None`."""
    flat = _MARKUP.sub(" ", text).strip().rstrip(".")
    found = _CHOICE.fullmatch(flat.strip())
    if found is None or (found[3] and _HEDGE.search(found[3])) or len(flat) > 200:
        return None
    return found[1].upper(), found[3] or ""
