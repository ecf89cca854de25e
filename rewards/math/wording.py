"""Comparing answers in words: `no solution`, `Tuesday`."""

from __future__ import annotations

from rewards.math.kinds import Kind, Tokens
from rewards.math.shapes import Quantity, Shape, Words
from rewards.math.units import is_product
from rewards.math.values import infinite

_SYNONYMS = {
    **dict.fromkeys(
        ["none", "no solutions", "no real solutions", "no real solution", "empty set", "no answer"], "no solution"
    ),
    **dict.fromkeys(["dne", "doesn't exist", "not exist"], "does not exist"),
    **dict.fromkeys(["infinite", "infinity"], "infinitely many"),
}


def in_words(gold: Shape, answer: Shape) -> bool:
    """Words against words, a letter, or infinity; numbers in words are quantities."""
    if isinstance(gold, Words) and isinstance(answer, Words):
        return _canonical(gold) == _canonical(answer)
    words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    assert isinstance(words, Words)
    if isinstance(other, Quantity) and infinite(other.written) == 1:
        return _canonical(words) == "infinitely many"
    if isinstance(other, Quantity) and len(other.written) == 1:  # \text{x} and x
        return len(words.words) == 1 and words.words[0] == other.written[0].text.lower()
    return False


def _canonical(words: Words) -> str:
    text = " ".join(words.words)
    for beginning in ("it is ", "there is ", "there are "):
        text = text.removeprefix(beginning)
    return _SYNONYMS.get(text, text)


def same_words(gold: Tokens, answer: Tokens) -> bool:
    """Whether the tokens differ in nothing but the case and the markup of words: `\\text{June 6}` and `june 6`."""
    wordy = (Kind.WORD, Kind.TEXT)
    return 0 < len(gold) == len(answer) and all(
        g == a
        or (g.kind in wordy and a.kind in wordy and (g.text == a.text or _word(g.text) == _word(a.text) is not None))
        for g, a in zip(gold, answer, strict=True)
    )


def _word(text: str) -> str | None:
    """A word without its case; `None` for letters that may be variables."""
    return None if is_product(text.lower()) else text.lower()
