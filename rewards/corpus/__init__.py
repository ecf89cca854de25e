"""Hand-labelled pairs of gold and answer, on which verifiers are measured.

`code.jsonl`: golds of code, each with a program that must be paid, or with one that cheats.

`math.jsonl`: one JSON object a line with `gold`, `answer` (the content of the final box) or `completion` (the whole
text), `equal` (whether it must be rewarded), `family`, and `why`, the reason for the label. Labels follow one rule:
would a careful examiner who knows the gold, but not the question, accept the answer as it stands?
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Pair:
    """One labelled pair: a completion, the gold answer, and whether it must be rewarded."""

    gold: str
    completion: str
    equal: bool
    family: str
    why: str
    answer: str | None = None


def boxed(answer: str) -> str:
    """A completion with this final answer."""
    return rf"So the answer is \boxed{{{answer}}}."


def load(name: str = "math") -> list[Pair]:
    """The pairs of a corpus, in the order of its file."""
    text = (files("rewards.corpus") / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [Pair(**{"completion": boxed(row["answer"]) if "answer" in row else "", **row}) for row in rows]
