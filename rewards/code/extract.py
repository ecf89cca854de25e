"""Finding the program in a completion."""

from __future__ import annotations

from rewards.text import answer_tag, split_thought

PYTHON = frozenset({"python", "python3", "py", "py3"})
MAX_CODE = 1 << 17
"""Characters of a program. Longer ones are not solutions but tables, or attacks on the compiler."""

_FENCE = "```"


def extract_code(completion: str, opened: bool = False) -> str | None:
    """The program that a completion ends with, or `None`.

    After the last `</think>`: the last closed block fenced as Python; else the last closed block of any kind; else
    the content of the last `<answer>`. `opened` says that the completion begins inside a thought.
    """
    _, rest = split_thought(completion, opened)
    blocks = _blocks(rest)
    python = [code for language, code in blocks if language in PYTHON]
    if python:
        return python[-1]
    return blocks[-1][1] if blocks else answer_tag(rest)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Closed fenced blocks as (language in lower case, content)."""
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if language is None:
            if stripped.startswith(_FENCE):
                language, lines = stripped[len(_FENCE) :].strip().lower(), []
        elif stripped == _FENCE:
            blocks.append((language, "\n".join(lines)))
            language = None
        elif stripped.startswith(_FENCE) and stripped[len(_FENCE) :].strip().lower() in PYTHON:
            language, lines = stripped[len(_FENCE) :].strip().lower(), []  # the block before it was never closed
        else:
            lines.append(line)
    return blocks
