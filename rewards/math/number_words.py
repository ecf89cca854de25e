"""Whole numbers in words: `twenty-one`, `one hundred and five`, `two thousand`."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.math.kinds import Kind, Tokens

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_BELOW_HUNDRED = dict(zip(_SMALL.split(), range(20), strict=True)) | dict(
    zip(_TENS.split(), range(20, 100, 10), strict=True)
)
_POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MULTIPLIERS = {"dozen": 12, "hundred": 100, **_POWERS}
NUMBER_WORDS = frozenset({*_BELOW_HUNDRED, *MULTIPLIERS})
_IRREGULAR = {
    "one": "first",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}


def _ordinal(word: str) -> str:
    return _IRREGULAR.get(word, f"{word[:-1]}ieth" if word.endswith("y") else f"{word}th")


ORDINALS = frozenset(_ordinal(word) + ending for word in NUMBER_WORDS - {"two", "dozen"} for ending in ("", "s"))
"""Words that make another number of the one before them: `five sixths`, `twenty first`. A second is a unit of time."""
ROMAN = frozenset(
    tens + ones
    for tens in ("", "x", "xx", "xxx")
    for ones in ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
    if len(tens + ones) > 1
)
"""Numbers up to 39 as Roman numerals, single letters aside, which are units; Unicode's are folded to these."""
_LONGEST = 40
"""Tokens of the longest number that is read: fifteen digits take at most 35 words and hyphens."""


def spelled(text: Sequence[str]) -> int | None:
    """The whole number below 10**15 that words spell, `and` included; `None` for words that spell none."""
    if list(text) == ["zero"]:
        return 0
    total, group, room, power, joined = 0, 0, 100, 10**15, False
    for word in text:
        small = _BELOW_HUNDRED.get(word, 0)
        if word == "and":
            if joined or room < 100 or not (total or group):
                return None
            joined = True
            continue
        if 0 < small < room:
            group, room = group + small, 10 if small >= 20 else 0
        elif joined:
            return None
        elif word in ("hundred", "dozen") and group < 100 and (group or not total):
            group, room = MULTIPLIERS[word] * (group or 1), 100 if word == "hundred" else 0
        elif _POWERS.get(word, power) < power and group < 1000 and (group or not total):
            power = _POWERS[word]
            total, group, room = total + power * (group or 1), 0, 100
        else:
            return None
        joined = False
    return None if joined or not text else total + group


def leading(written: Tokens) -> tuple[int, int] | None:
    """The number that the first words of an answer spell, and how many tokens it takes; `None` if there is none.

    Hyphens count within numbers only: `twenty-one`, but neither `twenty - one` nor `one-to-one`.
    """
    text: list[str] = []
    end = 0
    for position, token in enumerate(written[: _LONGEST + 1]):
        follower = written[position + 1 : position + 2]
        word = token.text.lower() if token.kind in (Kind.WORD, Kind.TEXT) else ""
        before_number = bool(follower) and follower[0].text.lower() in NUMBER_WORDS
        if word in NUMBER_WORDS:
            text.append(word)
            end = position + 1
        elif word == "and" and text and before_number:
            text.append(word)
        elif token.text != "-" or token.spaced or not text or not before_number or follower[0].spaced:
            break
    number = spelled(text) if end <= _LONGEST else None
    return None if number is None else (number, end)
