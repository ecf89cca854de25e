r"""Judging mathematical answers.

    >>> from rewards import math
    >>> verifier = math.MathVerifier()
    >>> verifier.verify([math.Item(r"So it is \\boxed{\\frac{2}{4}}.", "0.5")])[0].status
    <Status.CORRECT: 'correct'>

A completion walks through `extract` (where is the answer?), `tokens` (notation), `read` (what kind of answer
is it?), `compare` with `expressions`, `quantities` and `wording` (is it the same?), and only if that is undecided
through `symbolic`, which is math-verify in a pool of killable processes.
"""

from __future__ import annotations

from rewards.math.extract import finals, gold_text
from rewards.math.verifier import MathVerifier, same
from rewards.verdict import Item

__all__ = ["Item", "MathVerifier", "finals", "gold_text", "same"]
