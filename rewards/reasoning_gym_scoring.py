"""What runs in the pool of `rewards.reasoning_gym`: the library's own scorers. Imported nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import reasoning_gym

from rewards.reasoning_gym import gold_of

DATASETS_KEPT = 64
"""Datasets that a worker keeps: some take a second to make, because they read word lists."""


def score(dataset: str, config: Mapping[str, Any], seed: int, index: int, gold: str, answer: str) -> float | None:
    """The library's score of an answer, or `None` if the puzzle's gold answer is another one than `gold`."""
    made = _dataset(dataset, json.dumps(config), seed)
    entry = made[index]
    return float(made.score_answer(answer, entry)) if gold_of(entry) == gold else None


@lru_cache(maxsize=DATASETS_KEPT)
def _dataset(name: str, config: str, seed: int) -> Any:
    return reasoning_gym.create_dataset(name, seed=seed, **json.loads(config))
