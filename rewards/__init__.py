"""Rewards people can trust: completions in, verdicts out.

    >>> import rewards
    >>> score = rewards.load("math")
    >>> score(["What is 1/2 + 1/2?"], [r"It is \\boxed{1}."], answer=["1"])
    [1.0]

This package knows nothing of the pipeline and can be used alone, in any trainer that takes TRL reward functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.composite import Composite, Part
from rewards.function import Batch, RewardFunction
from rewards.registry import RewardError, names, reward
from rewards.scores import RewardInfraError, ScoreError
from rewards.verdict import Item, Status, Verdict, Verifier

__all__ = [
    "Batch",
    "Composite",
    "Item",
    "Part",
    "RewardError",
    "RewardFunction",
    "RewardInfraError",
    "ScoreError",
    "Status",
    "Verdict",
    "Verifier",
    "load",
    "names",
    "reward",
    "verify",
]


def load(use: str, base: Path | None = None, **options: Any) -> RewardFunction:
    """A reward as a TRL-compatible, picklable function `(prompts, completions, **columns) -> list[float | None]`.

    Args:
        use: a name (`rewards.names()` lists them), `package.module:attribute`, or `path/file.py:attribute`.
        base: folder against which a relative file path is read; the current folder if not given.
        options: constructor arguments of the reward.

    Raises:
        RewardError: no such reward or option; the message names the nearest one.
    """
    return RewardFunction(use, options, base)


def verify(use: str, items: Sequence[Item | Mapping[str, Any] | tuple[str, Any]], **options: Any) -> list[Verdict]:
    """Judge completions outside of training: evaluation, rejection sampling, audits.

    Args:
        use: as in `load`.
        items: `Item`s, mappings with at least `completion` (and `answer` or `solution`), or (completion, answer) pairs.
        options: constructor arguments of the reward.

    Returns:
        One verdict an item, in order.
    """
    function = RewardFunction(use, options, in_trainer=False)
    try:
        return function.verdicts(Batch.of([_item(item) for item in items]))
    finally:
        function.close()


def _item(item: Item | Mapping[str, Any] | tuple[str, Any]) -> Item:
    if isinstance(item, Item):
        return item
    if isinstance(item, Mapping):
        rest = {k: v for k, v in item.items() if k not in ("completion", "prompt", "completion_ids")}
        gold = rest.get("answer", rest.get("solution"))
        return Item(item["completion"], gold, item.get("prompt", ""), item.get("completion_ids"), rest)
    completion, answer = item
    return Item(completion, answer)
