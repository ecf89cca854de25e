r"""Where the final answer of a completion is.

In this order: what follows the last `</think>`; in it `<answer>...</answer>`; else `\boxed{...}`; else a line or a
heading that announces the answer (`The final answer is ...`, `**Answer**`, `答案：`, GSM8K's `#### ...`); else the
whole text if it is nothing but an answer; and only if asked to be lenient the last number. Every pass is linear in the
completion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from rewards.math.tokens import matching_brace
from rewards.text import split_thought

MAX_BOXES = 32
"""Boxes looked at, from the last one; a completion with more is hedging."""
_TAIL = 2**15
"""Characters at the end of a completion among which its final answer is looked for."""
_BARE_LENGTH = 80
"""Characters of a completion that may be an answer as a whole."""
_LINE_LENGTH = 2000
_SHORTEST_ANNOUNCEMENT = 4
"""Characters of `故选：B`, with the brace of the box before it."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t]*")
_TAG = re.compile(r"<answer>|</answer>", re.IGNORECASE)
_CUE = re.compile(
    r"####|(?<![a-z])answer[*_]{0,3}[ \t]*"
    r"(?:(?:\bis\b|=|\bwould be\b|\bto\b[^.:\n]{0,80}\bis\b)[ \t]*:?|:)[*_]{0,3}"
    r"|(?:^|\n)[ \t]*(?:#{1,6}[ \t]*|\*{2,3}|__)(?:the[ \t]+)?(?:final[ \t]+)?answer(?:\*{2,3}|__)?[ \t]*(?=\n)"
    r"|(?:^|\n)[ \t]*(?:the[ \t]+)?final[ \t]+answer[ \t]*(?=\n)|\bcorrect[ \t]+(?:option|choice)[ \t]+is\b"
    r"|答案[*_]{0,3}[ \t]*(?:[是为為][ \t]*[:：]?|[:：])|故选[ \t]*[:：]?",
    re.IGNORECASE,
)
"""What announces an answer: a phrase, a heading on a line of its own, or the same in Chinese."""
_LAST_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n|。|(?<=[a-z])[!?](?:\s|$)")
_DISPLAYS = ((r"\[", r"\]"), ("$$", "$$"))
_LETTER = re.compile(r"\(?([A-H])\)?[.)]?")


def finals(completion: str, final_line: bool = True, lenient: bool = False, opened: bool = False) -> list[str]:
    """The texts that a completion offers as its final answer, in order; several if it has several boxes or tags.

    Args:
        completion: what the model wrote.
        final_line: read answers that are announced in words, or that are the whole text.
        lenient: fall back to the last number of the text.
        opened: whether the completion begins inside a thought.
    """
    _, text = split_thought(completion, opened)
    text = text[-_TAIL:]
    tagged = list(_tagged(text)) if "<" in text else []
    if tagged:
        return [inner for content in tagged for inner in (_boxes(content) or [_plain_answer(content)])]
    boxed, end = _closed_boxes(text)
    if boxed:
        return _with_choice(boxed, text[end:]) if final_line else boxed
    if end:
        return []  # the last box never closes: what stands before it was not the answer
    if final_line:
        announced = _announced(text)
        if announced is not None:
            return [announced]
        bare = text.strip()
        if bare and len(bare) <= _BARE_LENGTH and "\n" not in bare and "boxed" not in bare:
            return [bare]
    return [m[0].strip("$") for m in [*_LAST_NUMBER.finditer(text)][-1:]] if lenient else []


@lru_cache(maxsize=4096)
def gold_text(gold: str) -> str:
    r"""The answer in a gold solution: what follows `####`, what is boxed, or the whole of it."""
    if not any(sign in gold for sign in ("####", "<", "box")):
        return gold.strip()
    if "####" in gold:
        return gold.rsplit("####", 1)[1].strip()
    tagged = list(_tagged(gold))
    if tagged:
        gold = tagged[-1]
    boxed = _boxes(gold)
    return (", ".join(boxed) if len(boxed) > 1 and len(gold) < _LINE_LENGTH else boxed[-1]) if boxed else gold.strip()


def _tagged(text: str) -> Iterator[str]:
    """Contents of `<answer>` elements. A second opening tag starts over; an element that is not closed is none."""
    start = None
    for tag in _TAG.finditer(text):
        if tag[0][1] != "/":
            start = tag.end()
        elif start is not None:
            if content := text[start : tag.start()].strip():
                yield content
            start = None


def _plain_answer(content: str) -> str:
    """What an element without a box answers: all of it, unless it is a text that announces its answer."""
    short = len(content) <= _BARE_LENGTH and "\n" not in content
    return content if short else _announced(content) or content


def _boxes(text: str) -> list[str]:
    """Contents of balanced boxes outside of other boxes, without empty ones and repetitions."""
    return _closed_boxes(text)[0]


def _closed_boxes(text: str) -> tuple[list[str], int]:
    """Contents of boxes, and where the last one ends (0 if there is none); one left open retracts all before it."""
    contents: dict[str, None] = {}
    end = 0
    for found in [*_BOX.finditer(text)][-MAX_BOXES - 1 :]:
        if found.start() < end:
            continue
        position = found.end()
        if text[position : position + 1] != "{":
            digits = re.match(r"\d+", text[position : position + 40])
            if digits is not None:
                contents[digits[0]] = None
                end = position + digits.end()
            continue
        closed = matching_brace(text, position, position + _LINE_LENGTH)
        end = position if closed is None else closed
        if closed is None:
            contents.clear()
            continue
        content = text[position + 1 : closed].strip()
        if content.startswith("\\") and (inner := _boxes(content)):
            content = inner[-1]
        if content:
            contents[content] = None
    return list(contents), end


def _with_choice(boxed: list[str], rest: str) -> list[str]:
    """A boxed value and, behind it, the letter of a choice: one answer, as `(D) 12` is."""
    announces = len(boxed) == 1 and len(rest) >= _SHORTEST_ANNOUNCEMENT
    letter = _LETTER.fullmatch(_announced(rest) or "") if announces else None
    if letter is None or _LETTER.fullmatch(boxed[0]):
        return boxed
    return [f"({letter[1]}) {boxed[0]}"]


def _announced(text: str) -> str | None:
    """The rest of the sentence after the last cue."""
    cue = None
    for cue in _CUE.finditer(text):  # noqa: B007  the last one is wanted
        pass
    if cue is None:
        return None
    rest = text[cue.end() : cue.end() + _LINE_LENGTH].lstrip(" \t*:\n")
    for opened, closed in _DISPLAYS:
        end = rest.find(closed, len(opened)) if rest.startswith(opened) else -1
        if end > 0 and (displayed := rest[len(opened) : end].strip()):
            return displayed if "boxed" not in displayed else None
    stop = _SENTENCE_END.search(rest)
    answer = (rest[: stop.start()] if stop else rest).strip().strip("*_` ")
    return answer if answer and "boxed" not in answer else None
