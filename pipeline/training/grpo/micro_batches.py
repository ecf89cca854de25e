"""A micro-batch in several forward and backward passes of bounded size.

What a micro-batch costs in memory is decided by its longest rows, which nobody knows beforehand. With packing, its rows
are distributed over passes of `efficiency.tokens_per_pass` tokens, and each pass is followed by its own backward pass,
so that only one pass's activations are alive at a time. Since each token carries what it counts in the loss, the passes
add up to the loss and the gradients of the whole micro-batch.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pipeline.training.parallel.collectives import largest

log = logging.getLogger(__name__)

FILLS, FULL_ENOUGH = 32, 0.5
"""Micro-batches that the fill is averaged over, and the average below which a warning is logged."""


def balanced(lengths: Sequence[int], budget: int, at_least: int = 1) -> list[list[int]]:
    """Distribute rows over as few passes as stay within a budget of tokens, and evenly among these.

    First-fit decreasing says how many passes are needed; then the longest row first, each into the pass with the fewest
    tokens. A row longer than the budget is alone in its pass.

    Args:
        lengths: tokens of each row.
        budget: tokens a pass.
        at_least: number of passes to make at least, as far as there are rows.

    Returns:
        The indices of the rows of each pass, in ascending order. None is empty.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    fitted = _first_fit(order, lengths, budget)
    count = min(len(lengths), max(at_least, len(fitted)))
    passes: list[list[int]] = [[] for _ in range(count)]
    tokens = [(0, at) for at in range(count)]
    for row in order:
        held, lightest = heapq.heappop(tokens)
        passes[lightest].append(row)
        heapq.heappush(tokens, (held + lengths[row], lightest))
    if any(held > budget and len(passes[at]) > 1 for held, at in tokens):
        while len(fitted) < count:
            fitted.append([max(fitted, key=len).pop()])
        passes = fitted
    return [sorted(rows) for rows in passes if rows]


def _first_fit(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit decreasing: each row into the first pass that has room, at most 11/9 of the fewest passes there are."""
    passes: list[list[int]] = []
    room: list[int] = []
    for row in order:
        at = next((at for at, left in enumerate(room) if left >= lengths[row]), len(room))
        if at == len(room):
            passes.append([])
            room.append(budget)
        passes[at].append(row)
        room[at] -= lengths[row]
    return passes


def passes_of(lengths: Sequence[int], budget: int, accelerator: Any) -> list[list[int]]:
    """The rows of each pass, as many passes in every process: FSDP gathers weights in each of them. Collective.

    Args:
        lengths: tokens of each row; rows of length 0 are left out.
        budget: tokens a pass.
        accelerator: of the trainer.

    Returns:
        One pass at least. Passes without rows come last: only another process needs them.
    """
    rows = [row for row, tokens in enumerate(lengths) if tokens]
    needed = [lengths[row] for row in rows]
    passes = balanced(needed, budget)
    wanted = max(1, largest(accelerator, len(passes)))
    if wanted > len(passes):
        passes = balanced(needed, budget, wanted)
    return [[rows[at] for at in part] for part in passes] + [[]] * (wanted - len(passes))


class FillWatch:
    """Warns once if passes stay half empty, and says which settings fill them.

    Args:
        accumulated: `gradient_accumulation_steps`.
        budget: tokens a pass.
    """

    def __init__(self, accumulated: int, budget: int) -> None:
        self.accumulated, self.budget, self.silent = accumulated, budget, accumulated == 1
        self.fills: list[float] = []

    def add(self, lengths: Sequence[int], passes: int) -> float:
        """The share of the token budget that the passes of a micro-batch use, from 0 to about 1."""
        fill = sum(lengths) / (passes * self.budget)
        self.fills = [*self.fills, fill][-FILLS:]
        if not self.silent and len(self.fills) == FILLS and fmean(self.fills) < FULL_ENOUGH:
            log.warning(
                "training passes are %.0f %% full: the %d rows of a micro-batch are far from"
                " efficiency.tokens_per_pass (%d). A larger trainer.per_device_train_batch_size with fewer"
                " gradient_accumulation_steps (%d now) makes fewer passes of the same rollouts, in no more memory",
                100 * fmean(self.fills),
                len(lengths),
                self.budget,
                self.accumulated,
            )
            self.silent = True
        return fill
