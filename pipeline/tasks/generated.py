"""What generated tasks share: which split a problem belongs to, and drawing distinct problems of one split.

A problem's split follows from its own text through a stable hash, so train and test are disjoint whatever the seed,
on every machine and in every version of Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

from pipeline.tasks.base import Problem, Split, TaskError

TEST_SHARE = 0.1
"""Share of all possible problems that are test problems."""
PATIENCE = 20_000
"""Draws without a new problem after which a generator counts as exhausted."""


def stable_hash(key: str) -> int:
    """A 64-bit hash that never changes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def split_of(key: str, test_share: float = TEST_SHARE) -> Split:
    """The split that the problem with this key belongs to."""
    return "test" if stable_hash(key) < test_share * 2**64 else "train"


def problem_id(task: str, key: str) -> str:
    """An id that is the same for the same problem in every run."""
    return f"{task}-{stable_hash(key):016x}"


def draw(
    make: Callable[[Random], tuple[str, Callable[[], Problem]] | None],
    split: Split,
    n: int | None,
    default: int,
    seed: int,
) -> list[Problem]:
    """Distinct problems of one split.

    Args:
        make: draws a candidate: its key, and what builds the problem; `None` where the draw failed.
        split: which split.
        n: how many; up to `default` if not given.
        default: how many where `n` is not given.
        seed: makes the draws reproducible.

    Raises:
        TaskError: there are fewer than `n` different problems.
    """
    random, found = Random(seed), dict[str, Problem]()
    wanted, idle = n or default, 0
    while len(found) < wanted and idle < PATIENCE:
        idle += 1
        candidate = make(random)
        if candidate is not None and candidate[0] not in found and split_of(candidate[0]) == split:
            found[candidate[0]], idle = candidate[1](), 0
    if n is not None and len(found) < n:
        raise TaskError(f"{n} {split} problems are wanted, but only {len(found)} different ones exist")
    return list(found.values())
