"""Reading chats and R1's output format: the few text helpers that several verifiers share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
_SLOT = re.compile(r"(?<![\w\\{}])(?:\{([A-Za-z_]\w*)\}|\{\{\s*(\w+)\s*\}\})(?!\})")
"""A placeholder of a template. What follows a word or a brace is LaTeX, such as `\boxed{answer}`."""


def unknown_slots(template: str, known: Sequence[str]) -> str:
    """What is said of the first placeholder of a template, such as `{qestion}`, that nobody fills in.

    Args:
        template: the text.
        known: names of the placeholders that are filled in.

    Returns:
        `has the placeholder …, on its line 2, …`; empty if there is none.
    """
    for found in _SLOT.finditer(template):
        if found[1] not in known:
            close = get_close_matches(found[1] or found[2], known, n=1)
            hint = f" (did you mean {{{close[0]}}}?)" if close else ""
            line = template.count("\n", 0, found.start()) + 1
            names = ", ".join(f"{{{name}}}" for name in known)
            return f"has {found[0]} in its line {line}, which nothing fills in{hint}. Known: {names}"
    return ""


def plain(chat: Any) -> str:
    """The text of a prompt or completion, given as a string or as a list of chat messages.

    Example: `plain([{"role": "assistant", "content": "4"}])` is `"4"`. Content may be a list of text parts.
    """
    if isinstance(chat, str):
        return chat
    if isinstance(chat, Mapping):
        return _content(chat.get("content"))
    if isinstance(chat, Sequence):
        return "\n".join(plain(message) for message in chat)
    raise TypeError(f"a prompt or completion is text or a list of messages, not {type(chat).__name__}")


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)


BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\U0001d159\U00013441\U00013442")
"""Letters and symbols that leave no mark on paper: fillers of Hangul, empty Braille, a headless note, blank glyphs."""


def says_something(text: str) -> bool:
    """Whether any character leaves a mark on paper. Spaces, control and format characters, letters that are blank, and
    accents or selectors without a letter do not."""
    return any(unicodedata.category(char)[0] in "LNPS" and char not in BLANK for char in text)


def opens_thought(begun: str) -> bool:
    """Whether the assistant, made to begin its turn with this text, is inside a thought."""
    return THINK_CLOSE not in begun.rpartition(THINK_OPEN)[2] if THINK_OPEN in begun else False


def split_thought(completion: str, opened: bool = False) -> tuple[str | None, str]:
    """Split a completion into (thought, the rest) at the *last* `</think>`.

    A thought that was opened, by the completion or before it, and never closed leaves nothing to judge: the rest is
    empty. With no tag at all the thought is `None`.

    Args:
        completion: what the model wrote.
        opened: whether the prompt ends inside a thought, as many chat templates make it; `Item.opened` knows.
    """
    head, tag, tail = completion.rpartition(THINK_CLOSE)
    if tag:
        return head.split(THINK_OPEN, 1)[-1], tail
    if THINK_OPEN in completion:
        return completion.split(THINK_OPEN, 1)[1], ""
    if opened:
        return completion, ""
    return None, completion


def answer_tag(text: str) -> str | None:
    """The content of the last `<answer>…</answer>`, or `None`."""
    start = text.rfind(ANSWER_OPEN, 0, max(text.rfind(ANSWER_CLOSE), 0))
    if start < 0:
        return None
    start += len(ANSWER_OPEN)
    return text[start : text.find(ANSWER_CLOSE, start)].strip()
