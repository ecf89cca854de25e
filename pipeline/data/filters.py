"""What makes a row unfit to learn from: rules on completions, duplicates, and overlap with test problems.

R1's authors kept correct samples only and dropped those with mixed languages, long paragraphs and code blocks in the
thought (Nature version, rejection sampling); they removed training questions that share ten words in a row with a test
question (decontamination). Everything here takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from pipeline.schema.strict import Strict
from rewards.text import split_thought

R = TypeVar("R")

OVERLAP_WORDS = 10
"""Words in a row that a training question may not share with a test question (R1, Nature version)."""
REPEAT_WORDS = 8
"""Length of the runs that are counted as repetition; shorter ones repeat in sound text too."""
WORDING_SHARE = 0.01
"""A run of words that stands in a larger share of the test questions is their common wording, not their content."""
WORDING_LEAST = 3
"""Test questions that must share a run of words before it can count as wording."""
ALIKE = 50
"""Questions that begin alike among which one is looked for in another: more of them share a wording."""
SHORT_LEAST = 3
"""Words and signs of the shortest test question that is looked for within others."""
APPENDED_WORDS = 3
"""Words that may surround a short test question without a number: "What is its area?" stands in many a question."""

_FENCE = re.compile(r"^[ \t]*+(?:```|~~~)", re.MULTILINE)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
_PUNCTUATION = frozenset(".,;:?!¿¡\"'`()$。、「」“”‘’…")
_COMMANDS = {"times": "*", "cdot": "*", "div": "/"}
_COMMAND = re.compile(r"\\(times|cdot|div)(?![a-z])")
"""LaTeX's ways to write a sign that text has as one character."""
_ONE_SIGN = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212"), "-"),
    **dict.fromkeys(map(ord, "\u00d7\u00b7\u22c5\u2219"), "*"),
    **dict.fromkeys(map(ord, "\u00f7\u2215"), "/"),
    **dict.fromkeys((0x00AD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF)),
}
"""Characters that look alike -> one of them; what nobody sees, such as a soft hyphen -> nothing."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[^\w\s]")
"""A word, a sign, or one character of a script that is written without spaces."""


class FilterSpec(Strict):
    """Rules that a completion must keep to.

    Attributes:
        truncated: whether completions that reached the longest allowed length may stay.
        min_tokens, max_tokens: bounds on the length, in tokens.
        code_in_thought: whether there may be code blocks in the thought.
        max_paragraph: longest paragraph of the thought, in characters.
        max_repetition: largest share of eight-word runs that stood in the completion before.
    """

    truncated: bool = False
    min_tokens: Annotated[int, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    code_in_thought: bool = False
    max_paragraph: Annotated[int, Field(gt=0)] | None = None
    max_repetition: Annotated[float, Field(ge=0, le=1)] | None = None

    def fault(self, completion: str, tokens: int, truncated: bool) -> str | None:
        """The first rule that a completion breaks, by name, or `None`.

        Args:
            completion: what the model wrote.
            tokens: its length.
            truncated: whether it was cut off at the longest allowed length.
        """
        if truncated and not self.truncated:
            return "truncated"
        if self.min_tokens is not None and tokens < self.min_tokens:
            return "too_short"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return "too_long"
        thought = split_thought(completion)[0] or ""
        if not self.code_in_thought and _FENCE.search(thought):
            return "code_in_thought"
        if self.max_paragraph is not None and longest_paragraph(thought) > self.max_paragraph:
            return "long_paragraph"
        if self.max_repetition is not None and repetition(completion) > self.max_repetition:
            return "repetition"
        return None


def longest_paragraph(text: str) -> int:
    """Characters of the longest stretch without an empty line."""
    return max(len(paragraph.strip()) for paragraph in re.split(r"\n[ \t]*\n", text))


def repetition(text: str, length: int = REPEAT_WORDS) -> float:
    """Share of the runs of `length` words that are copies of an earlier one: 0 for sound text, near 1 for a loop."""
    found = list(_runs(_words(text), length))
    return 1 - len(set(found)) / len(found) if found else 0.0


class Duplicates:
    """Remembers texts; they are the same if they differ in nothing but case, spaces and width of characters.

    Signs count: `2 + 3` and `2 - 3` are not the same.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, ...]] = set()

    def seen(self, *texts: str) -> bool:
        """Whether the same combination of texts came before; remembers it."""
        key = tuple(" ".join(_words(text)) for text in texts)
        known = key in self._seen
        self._seen.add(key)
        return known


class Contamination:
    """Finds questions that are in a test set, or share ten words in a row with one that is.

    Signs are no words: LaTeX is full of them. Runs of words that many different test questions share, whatever numbers
    stand between them ("how many … are there in all?"), are wording and do not count. A test question that is shorter
    than a run counts as one run, signs included: `What is 12 * 7, please?` holds `What is 12 * 7?`, and
    `What is 12 * 7 + 1?` does not.

    Args:
        tests: the test questions; one that is listed several times counts once.
        length: words in a row.
        wording: texts that tasks put around what they ask. A run of words never holds a part of one.

    Attributes:
        left_out: rows that `clean` has left out so far.
    """

    def __init__(self, tests: Iterable[str], length: int = OVERLAP_WORDS, wording: Iterable[str] = ()) -> None:
        self.length, self.left_out = length, 0
        self._wording = re.compile("|".join(map(re.escape, sorted({*wording}, key=len, reverse=True))) or r"(?!)")
        questions = list(dict.fromkeys(tuple(_words(self._content(text))) for text in tests))
        self._whole = set(questions)
        most = max(WORDING_LEAST, WORDING_SHARE * len(questions))
        counts = Counter(
            run for words in _undressed(questions, length) for run in set(_runs(_without_numbers(words), length))
        )
        self._parts = {
            run
            for words in map(_unsigned, questions)
            for run, wording in zip(_runs(words, length), _runs(_without_numbers(words), length), strict=True)
            if counts[wording] < most
        }
        self._short: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for words in questions:
            told = tuple(_told(words))
            if len(_unsigned(words)) < length and len(told) >= SHORT_LEAST:
                self._short.setdefault(told[:SHORT_LEAST], set()).add(told)

    def found(self, question: str) -> bool:
        """Whether a question is contaminated, as a whole or in one of its paragraphs."""
        if not self._whole:
            return False
        question = self._content(question)
        words = _words(question)
        if tuple(words) in self._whole or any(run in self._parts for run in _runs(_unsigned(words), self.length)):
            return True
        if not self._short:
            return False
        paragraphs = _PARAGRAPH_END.split(question)
        several = (_told(_words(paragraph)) for paragraph in paragraphs) if len(paragraphs) > 1 else ()
        return any(map(self._holds_short, (_told(words), *several)))

    def clean(self, rows: Iterable[R], asked: Callable[[R], str]) -> list[R]:
        """The rows that ask nothing of the test sets; counts the others.

        Args:
            rows: of any kind.
            asked: what a row asks, as text.
        """
        given = list(rows)
        kept = [row for row in given if not self.found(asked(row))]
        self.left_out += len(given) - len(kept)
        return kept

    def _content(self, question: str) -> str:
        return self._wording.sub("\n\n", question)

    def _holds_short(self, words: list[str]) -> bool:
        """Whether a short test question stands in a text, and the text does not go on with its formula."""
        for at in range(len(words) - SHORT_LEAST + 1):
            for short in self._short.get(tuple(words[at : at + SHORT_LEAST]), ()):
                end = at + len(short)
                if tuple(words[at:end]) != short:
                    continue
                tells = any(word.isdigit() for word in short)
                if not tells and len(words) - len(short) > APPENDED_WORDS:
                    continue
                before, after = words[at - 1 : at] if at else [], words[end : end + 1]
                if not (_goes_on(before, short[0]) or _goes_on(after, short[-1])):
                    return True
        return False


def _without_numbers(words: Iterable[str]) -> list[str]:
    return ["0" if word.isdigit() else word for word in words]


def _undressed(questions: Iterable[tuple[str, ...]], length: int) -> list[list[str]]:
    """The words of questions, without those that only say another one with words around it (`Question: …`)."""
    kept: list[list[str]] = []
    beginning: dict[tuple[str, ...], list[list[str]]] = {}
    for words in sorted(map(_unsigned, questions), key=len):
        if not _holds_one(words, beginning, length):
            kept.append(words)
            beginning.setdefault(tuple(words[:length]), []).append(words)
    return kept


def _holds_one(words: list[str], beginning: Mapping[tuple[str, ...], list[list[str]]], length: int) -> bool:
    return any(
        words[at : at + len(core)] == core
        for at, run in enumerate(_runs(words, length))
        for core in beginning.get(run, [])[:ALIKE]
    )


def _goes_on(beside: Sequence[str], edge: str) -> bool:
    """Whether what stands beside a question belongs to its formula."""
    return any(not word.isalnum() or (word.isdigit() and not edge.isalpha()) for word in beside)


def _told(words: Iterable[str]) -> list[str]:
    """Without the signs of sentences."""
    return [word for word in words if word not in _PUNCTUATION]


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_ONE_SIGN)
    return _WORD.findall(_COMMAND.sub(lambda found: _COMMANDS[found[1]], plain))


def _unsigned(words: Iterable[str]) -> list[str]:
    return [word for word in words if word.isalnum()]


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[at : at + length]) for at in range(len(words) - length + 1))
