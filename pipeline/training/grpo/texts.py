"""What the texts of rollouts tell of a policy that goes wrong: it repeats itself, or drifts into another language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.training.parallel.collectives import summed
from rewards.language import foreign_words
from rewards.text import plain

PASSAGE = 20
"""Tokens of a passage: shorter ones come twice in any long text, a loop of this many is one."""
LOOKED_AT = 64
"""Rollouts a process that are looked at in a generation batch: a mean over a sample is enough for an alarm."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""An odd number of 64 random bits: passages of different tokens have different hashes but for one pair in 2^64."""


def repeated(ids: Sequence[int]) -> float:
    """The share of a text's passages that occurred before in it; 0 for a text that is shorter than two of them."""
    count = len(ids) - PASSAGE + 1
    if count < 2:
        return 0.0
    tokens, hashes = np.asarray(ids, dtype=np.uint64) + np.uint64(1), np.zeros(count, dtype=np.uint64)
    for at in range(PASSAGE):  # wraps around at 2^64
        hashes = hashes * _BASE + tokens[at : at + count]
    return 1.0 - len(np.unique(hashes)) / count


def log_texts(
    trainer: Any, problems: Sequence[Mapping[str, Any]], completions: Sequence[Any], ids: Sequence[Sequence[int]]
) -> None:
    """Log both shares, over all processes; no share of words where no question has any. Collective.

    Args:
        trainer: a `GrpoTrainer`.
        problems: of this process's rollouts, one each.
        completions: texts, or chats of one message.
        ids: their tokens.
    """
    step = max(1, len(ids) // LOOKED_AT)
    looked = range(0, len(ids), step)
    loops = [repeated(ids[row]) for row in looked]
    counts = [foreign_words(plain(completions[row]), str(problems[row].get("question") or "")) for row in looked]
    strange, read = (sum(pair[at] for pair in counts) for at in (0, 1))
    loop, rows, foreign, words = summed(trainer.accelerator, sum(loops), len(loops), strange, read)
    trainer._metrics["train"]["completions/repetition"].append(loop / rows)
    if words:
        trainer._metrics["train"]["completions/foreign_words"].append(foreign / words)
