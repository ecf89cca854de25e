"""Rows of a batch of rollouts: choosing some, packing them into passes, and what a part of them counts for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.training.schedule import MEAN_OF_TOKENS

MEAN_OF_ROWS = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""Losses of TRL that divide by the number of rows in a micro-batch; see also `MEAN_OF_TOKENS`."""


def select(inputs: Mapping[str, Any], rows: Sequence[int], at_least: int = 0) -> dict[str, Any]:
    """Some rows of a micro-batch, in the given order; what belongs to no row stays as it is.

    Args:
        inputs: the micro-batch.
        rows: which rows.
        at_least: rows without any token that counts are added until there are so many.
    """
    count = inputs["completion_ids"].size(0)
    idle = [rows[0] if rows else 0] * (at_least - len(rows))
    wanted = [*rows, *idle]
    index = torch.tensor(wanted, dtype=torch.long, device=inputs["completion_ids"].device)

    def chosen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.size(0) == count:
            return value[index]
        return [value[row] for row in wanted] if isinstance(value, list) and len(value) == count else value

    found = {name: chosen(value) for name, value in inputs.items()}
    if idle:
        found["completion_mask"][len(rows) :] = 0  # indexing has made a copy
    return found


def loss_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
    """(rows, completion tokens): 1 where a token counts in the loss."""
    mask_BC: torch.Tensor = inputs["completion_mask"]
    return mask_BC * inputs["tool_mask"] if "tool_mask" in inputs else mask_BC


def share(loss_type: str, part: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
    """What the loss of a part has to be multiplied with, so that parts add up to the loss of the whole micro-batch."""
    if loss_type in MEAN_OF_ROWS:
        return float(part["completion_ids"].size(0) / whole["completion_ids"].size(0))
    if loss_type in MEAN_OF_TOKENS:
        tokens, all_tokens = loss_mask(part).sum().item(), loss_mask(whole).sum().item()
        return float(tokens / max(all_tokens, 1))
    return 1.0


def equal_groups(rewards_BF: torch.Tensor, group: int) -> torch.Tensor:
    """(groups,) True where all rollouts of a group that have a reward have the same one, so that it teaches nothing.

    Args:
        rewards_BF: (rows, rewards), NaN where a reward gave no score. A row without any score is not compared.
        group: rollouts a group.
    """
    unscored_PG = rewards_BF.isnan().all(dim=1).view(-1, group)
    rewards_PG = rewards_BF.nansum(dim=1).view(-1, group)
    highest_P = rewards_PG.masked_fill(unscored_PG, -torch.inf).amax(dim=1)
    return highest_P <= rewards_PG.masked_fill(unscored_PG, torch.inf).amin(dim=1)


@contextmanager
def weighed(trainer: Any, weight: float) -> Iterator[None]:
    """Let TRL's losses come out multiplied by a weight.

    TRL divides every loss that is a mean over a micro-batch by the number of accumulation steps; so that number is set.
    A part of weight 0 has no token that counts, and a loss of 0 at any weight.
    """
    steps = trainer.current_gradient_accumulation_steps
    if weight not in (0.0, 1.0):
        trainer.current_gradient_accumulation_steps = steps / weight
    try:
        yield
    finally:
        trainer.current_gradient_accumulation_steps = steps


def balanced(lengths: Sequence[int], budget: int, at_least: int = 1) -> list[list[int]]:
    """Distribute rows over as few passes as stay within a budget of tokens, and evenly among these.

    The longest row first, each into the pass with the fewest tokens. A row longer than the budget is alone in its pass.

    Args:
        lengths: tokens of each row.
        budget: tokens a pass.
        at_least: number of passes to make at least, as far as there are rows.

    Returns:
        The indices of the rows of each pass, in ascending order. None is empty.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    count = min(len(lengths), max(at_least, -(-sum(lengths) // budget)))
    while True:
        passes: list[list[int]] = [[] for _ in range(count)]
        tokens = [0] * count
        for row in order:
            lightest = min(range(count), key=tokens.__getitem__)
            passes[lightest].append(row)
            tokens[lightest] += lengths[row]
        if all(size <= budget or len(rows) == 1 for size, rows in zip(tokens, passes, strict=True)):
            return [sorted(rows) for rows in passes if rows]
        count += 1


def agreed(trainer: Any, number: int) -> int:
    """The largest of a number over all processes, so that all make as many collective calls, of the same shapes."""
    if trainer.accelerator.num_processes == 1:
        return number
    mine = torch.tensor([number], device=trainer.accelerator.device)
    return int(trainer.accelerator.gather(mine).max().item())
