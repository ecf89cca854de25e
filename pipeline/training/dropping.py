"""Rows whose advantage is zero, left out of the forward and backward passes.

Where the loss is made of advantages alone, such rows add exactly nothing to the gradient, and often they are half of
the batch: groups in which every rollout succeeded, or none did. What the loss is divided by stays that of all rows.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.schema.efficiency import Efficiency, drops
from pipeline.training.rows import agreed, equal_groups, select, share, weighed


class Dropping:
    """Mixin for `GRPOTrainer`: `efficiency.drop_dead_groups`.

    It also makes the advantages of such groups exactly zero. The mean of equal numbers may be off by a rounding error,
    and divided by a deviation of 1e-4 that is no longer small.
    """

    efficiency: Efficiency
    args: Any
    accelerator: Any
    model: Any
    num_generations: int
    loss_type: str
    _equal: torch.Tensor
    """(rows of all processes,) whether a row belongs to a group with equal rewards."""
    aux_loss_enabled: bool
    _metrics: Any

    def prepare_dropping(self) -> None:
        """Call once, at the end of `__init__`.

        Raises:
            ValueError: rows without advantage are to be left out, but a loss balances experts over all rows.
        """
        if self.efficiency.drop_dead_groups is True and self.aux_loss_enabled:
            raise ValueError(
                "efficiency.drop_dead_groups: the model has a router loss; set trainer.router_aux_loss_coef: 0"
            )

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards_BF: torch.Tensor = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        if self.model.training:
            self._equal = equal_groups(rewards_BF, self.num_generations).repeat_interleave(self.num_generations)
        return rewards_BF

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.model.training and (self.efficiency.refill_rounds or drops(self.efficiency, vars(self.args))):
            mine = self._equal.view(self.accelerator.num_processes, -1)[self.accelerator.process_index]
            batch["advantages"] = batch["advantages"].masked_fill(mine, 0.0)
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.model.training or not drops(self.efficiency, vars(self.args)) or self.aux_loss_enabled:
            return super()._compute_loss(model, inputs)  # type: ignore[misc, no-any-return]
        advantages_B = inputs["advantages"]
        live = advantages_B.nonzero().flatten().tolist()
        self._metrics["train"]["groups/dropped_rows"].append(1 - len(live) / len(advantages_B))
        rows = agreed(self, len(live))  # TRL gathers metrics of rows, so that all processes need as many
        if rows == len(advantages_B):
            return super()._compute_loss(model, inputs)  # type: ignore[misc, no-any-return]
        kept = select(inputs, live, max(rows, 1))  # without any live row the loss is zero, but hangs on the weights
        with weighed(self, share(self.loss_type, kept, inputs)):
            return super()._compute_loss(model, kept)  # type: ignore[misc, no-any-return]
