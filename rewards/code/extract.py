"""Finding the program in a completion."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from rewards.text import answer_tag, split_thought

PYTHON = frozenset({"python", "python3", "py", "py3"})
MAX_CODE = 1 << 17
"""Characters of a program. Longer ones are not solutions but tables, or attacks on the compiler."""
_MAX_LINE = 1000
"""Characters of code on the line of a fence."""

_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*(\S*)(.*)")
"""A line that opens a block: the fence, the language, and what else stands there."""


def extract_code(completion: str, opened: bool = False) -> str | None:
    """The program that a completion ends with, or `None`.

    After the last `</think>`: the last closed block fenced as Python; else the last closed block of any kind; else
    the content of the last `<answer>`. A fence is three or more backticks or tildes, and is closed by as many; code may
    begin and end on the lines of its fences. `opened` says that the completion begins inside a thought.
    """
    _, rest = split_thought(completion, opened)
    blocks = _blocks(rest)
    python = [block.code for block in blocks if block.language in PYTHON]
    if python:
        return python[-1]
    return blocks[-1].code if blocks else answer_tag(rest)


@dataclass(slots=True)
class _Block:
    """A fenced block.

    Attributes:
        fence: what opened it.
        language: in lower case.
        lines: of code, so far.
    """

    fence: str
    language: str
    lines: list[str] = field(default_factory=list)

    @property
    def code(self) -> str:
        return "\n".join(self.lines)

    def closes(self, line: str) -> bool:
        """Whether a line is the end of the block, or ends with it; if so, its code belongs to the block."""
        stripped = line.strip()
        mark = stripped[len(stripped.rstrip(self.fence[0])) :]
        if len(mark) < len(self.fence):
            return False
        before = line.rstrip()[: -len(mark)]
        if before.strip():
            if self.fence[0] in before:
                return False
            self.lines.append(before)
        return True


def _blocks(text: str) -> list[_Block]:
    """Closed fenced blocks."""
    blocks: list[_Block] = []
    block: _Block | None = None
    for line in text.split("\n"):
        opened = _FENCE.match(line.strip())
        if block is None:
            block = _opened(opened) if opened else None
            if block is not None and opened is not None and _is_whole(block, opened):
                blocks.append(block)
                block = None
        elif opened and opened[1][0] == block.fence[0] and opened[2].lower() in PYTHON:
            block = _opened(opened)  # the block before it was never closed
        elif block.closes(line):
            blocks.append(block)
            block = None
        else:
            block.lines.append(line)
    return blocks


def _opened(opened: re.Match[str]) -> _Block:
    """The block that a line opens, with what code stands there."""
    fence, language, rest = opened.groups()
    block = _Block(fence, language.lower())
    if block.language in PYTHON and rest.strip() and fence[0] not in rest and _is_code(rest.strip()):
        block.lines.append(rest.strip())
    return block


def _is_whole(block: _Block, opened: re.Match[str]) -> bool:
    """Whether the line that opens a block also closes it: ```` ```print(3)``` ````."""
    fence, language, rest = opened.groups()
    content = language + rest
    if not content.rstrip().endswith(fence):
        return False
    code = content.rstrip()[: -len(fence)]
    if language.lower() in PYTHON:
        code = rest.rstrip()[: -len(fence)]
    else:
        block.language = ""
    if fence[0] in code or not code.strip():
        return False
    block.lines = [code.strip()]
    return True


def _is_code(text: str) -> bool:
    """Whether what stands behind a language is code, and not a title or a number of lines."""
    if len(text) > _MAX_LINE:
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text.rstrip().endswith(":") and not text.startswith("{")
    return True
