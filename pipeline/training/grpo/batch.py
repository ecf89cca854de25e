"""A generation batch as tensors: what was sampled, what it was worth, and what is known of its log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

Row = dict[str, Tensor]
"""One rollout without padding, on the CPU: prompt_ids (P,), completion_ids, mask and what is known of its tokens (C,),
its advantage () and its rewards (F,)."""
PER_TOKEN = ("old_BC", "sampler_BC", "reference_BC")
"""Log-probabilities that a batch may know of its completion tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rollouts of this process, or some of them.

    Attributes:
        prompt_ids_BP, prompt_mask_BP: prompts, padded on the left.
        completion_ids_BC: what was sampled, padded on the right.
        mask_BC: 1 for a token that counts, 0 for padding and for completions that are masked as a whole.
        advantages_B: see `objective.advantages`.
        tokens: completion tokens that count, in the generation batch of all processes.
        old_BC: log π_old, of the policy that an update starts from; NaN or `None` where that is the policy in training.
        sampler_BC: log-probabilities that the engine gave; NaN where it gave none.
        reference_BC: log π_ref.
        weights_BC: what a token's loss counts in the loss of the optimizer step; see `objective.token_weights`.
        rewards_BF: the reward, and the scores of its parts; NaN where there is none. For the record alone.
        at_B: which rows of a micro-batch these are.
        checked_BC: log π of the policy in training, from a pass without gradient, where it has to be confirmed.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    completion_ids_BC: Tensor
    mask_BC: Tensor
    advantages_B: Tensor
    tokens: float = 0.0
    old_BC: Tensor | None = None
    sampler_BC: Tensor | None = None
    reference_BC: Tensor | None = None
    weights_BC: Tensor | None = None
    rewards_BF: Tensor | None = None
    at_B: Tensor | None = None
    checked_BC: Tensor | None = None

    def __len__(self) -> int:
        return self.completion_ids_BC.size(0)

    @property
    def ids(self) -> Tensor:
        """(B, T) prompts and completions."""
        return torch.cat([self.prompt_ids_BP, self.completion_ids_BC], dim=1)

    @property
    def attended(self) -> Tensor:
        """(B, T) 1 for tokens, 0 for padding."""
        return torch.cat([self.prompt_mask_BP, self.mask_BC], dim=1)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens that a forward pass of a row takes: 0 where no token counts, since nobody asks for such a row."""
        completions_B = self.mask_BC.sum(1)
        return (self.prompt_mask_BP.sum(1) + completions_B).where(completions_B > 0, 0)

    def knowing(self, **known: Any) -> Batch:
        """The same rollouts with more of what is known of them."""
        return replace(self, **known)

    def select(self, rows: Sequence[int] | Tensor) -> Batch:
        """Some rows, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.advantages_B.device)
        return self._each(lambda value: value[index])

    def part(self, rows: Sequence[int]) -> Batch:
        """Some rows; where there are none, one that counts for nothing keeps other processes company."""
        return self.select(rows) if rows else self.idle()

    def idle(self) -> Batch:
        """The row with the shortest prompt, and nothing in it that counts: for a process that keeps others company."""
        row = self.select(self.prompt_mask_BP.sum(1).argmin()[None])
        weights = None if row.weights_BC is None else torch.zeros_like(row.weights_BC)
        return replace(row, mask_BC=torch.zeros_like(row.mask_BC), weights_BC=weights)

    def split(self, parts: int) -> list[Batch]:
        """As many batches of equal size."""
        return [self.select(rows) for rows in torch.arange(len(self)).chunk(parts)]

    def _each(self, change: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)})

    def rows(self) -> list[Row]:
        """The rows without their padding, on the CPU."""
        held = self._each(Tensor.cpu)
        prompts_B = held.prompt_mask_BP.sum(1).tolist()
        completions_B = held.mask_BC.sum(1).clamp(min=1).tolist()  # a masked completion keeps one masked token
        known = [name for name in PER_TOKEN if getattr(held, name) is not None]
        rows: list[Row] = []
        for at, (prompt, completion) in enumerate(zip(prompts_B, completions_B, strict=True)):
            row = {
                "prompt_ids": held.prompt_ids_BP[at, held.prompt_ids_BP.size(1) - prompt :],
                "completion_ids": held.completion_ids_BC[at, :completion],
                "mask": held.mask_BC[at, :completion],
                "advantage": held.advantages_B[at],
            }
            row |= {name: getattr(held, name)[at, :completion] for name in known}
            if held.rewards_BF is not None:
                row["rewards"] = held.rewards_BF[at]
            rows.append({name: value.clone() for name, value in row.items()})
        return rows


def of_rows(rows: Sequence[Row], padding: int, device: Any, tokens: float = 0.0) -> Batch:
    """A batch of rows, padded. What only some rows know of their tokens is NaN in the others.

    Args:
        rows: see `Row`; "advantage" may be missing in all of them.
        padding: the token that stands where none is.
        device: of the batch.
        tokens: see `Batch`.
    """

    def padded(values: list[Tensor], fill: float = 0, side: str = "right") -> Tensor:
        joined: Tensor = pad(values, padding_value=fill, padding_side=side)
        return joined.to(device)

    prompts = [row["prompt_ids"] for row in rows]
    known = {}
    for name in PER_TOKEN:
        if any(name in row for row in rows):
            unknown = [torch.full(row["completion_ids"].shape, math.nan) for row in rows]
            known[name] = padded([row.get(name, nan) for row, nan in zip(rows, unknown, strict=True)])
    if (scores := next((row["rewards"] for row in rows if "rewards" in row), None)) is not None:
        unknown_F = torch.full_like(scores, math.nan)
        known["rewards_BF"] = torch.stack([row.get("rewards", unknown_F) for row in rows]).to(device)
    return Batch(
        padded(prompts, padding, "left"),
        padded([torch.ones_like(ids) for ids in prompts], 0, "left"),
        padded([row["completion_ids"] for row in rows], padding),
        padded([row["mask"] for row in rows]),
        torch.stack([row.get("advantage", torch.zeros(())) for row in rows]).to(device),
        tokens,
        **known,
    )
