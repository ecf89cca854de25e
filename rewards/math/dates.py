"""Days of the year: `March 5`, `5 March`, `the 5th of March, 2004`."""

from __future__ import annotations

import re

from rewards.math.kinds import Kind, Tokens

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH = {name[:length]: number for number, name in enumerate(_MONTHS, 1) for length in (3, len(name))}
_LONGEST = 12
"""Tokens of the longest date: `the 5 ^ { th } of March , 2004` has ten."""
_NAME = "|".join(sorted(_MONTH, key=len, reverse=True))
_DAY = r"([1-9]|[12]\d|3[01])(?: (?:st|nd|rd|th)| \^ \{ (?:st|nd|rd|th) \})?"
_YEAR = r"(?:(?: ,)? (\d{4}))?"
_MONTH_FIRST = re.compile(rf"({_NAME})(?: the)? {_DAY}{_YEAR}")
_DAY_FIRST = re.compile(rf"(?:the )?{_DAY}(?: of)? ({_NAME}){_YEAR}")


def date(written: Tokens) -> tuple[int, int, int] | None:
    """Year (0 if none is said), month and day of a date, whichever of month and day comes first; `None` for others.

    Dates in digits are not read: `3/5` is a fraction, and two days.
    """
    if len(written) > _LONGEST or not any(token.kind in (Kind.WORD, Kind.TEXT) for token in written):
        return None
    text = " ".join(token.text for token in written).lower()
    if (found := _MONTH_FIRST.fullmatch(text)) is not None:
        month, day, year = found.groups()
    elif (found := _DAY_FIRST.fullmatch(text)) is not None:
        day, month, year = found.groups()
    else:
        return None
    return int(year or 0), _MONTH[month], int(day)
