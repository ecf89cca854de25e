"""A penalty for saying the same again: the share of n-grams of tokens that occurred before.

With n = 2, the tokens `5 5 5 5 5` hold four pairs, of which one is new: the penalty is 3/4 of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.bounds import AtLeastOne, Finite
from rewards.length import penalties, token_ids
from rewards.verdict import Item, Verdict


class Repetition:
    """0 without repeated n-grams, down to `penalty` for nothing but them (Yeo et al., arXiv 2502.03373, appendix C.2).

    Short n-grams repeat in any long text: with three tokens, a long thought is punished for its length; with forty,
    only for loops.

    Args:
        ngram_tokens: length of an n-gram.
        penalty: the score of a text that only repeats itself; not above 0.
    """

    def __init__(self, ngram_tokens: AtLeastOne = 40, penalty: Finite = -1.0) -> None:
        if ngram_tokens < 1:
            raise ValueError(f"ngram_tokens is at least 1, not {ngram_tokens}")
        from trl.rewards import get_repetition_penalty_reward

        self._punish = get_repetition_penalty_reward(ngram_tokens, penalty)

    @staticmethod
    def unfit(penalty: float, **_: Any) -> str:
        """Why it cannot punish; empty if it can."""
        return f"penalty, which is TRL's max_penalty, has to be 0 or less, not {penalty}" if penalty > 0 else ""

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item: correct where nothing repeats."""
        return penalties(self._punish(completion_ids=[list(token_ids(item)) for item in items]))
