"""A micro-batch in several forward and backward passes of bounded size.

What a micro-batch costs in memory is decided by its longest rows, which nobody knows beforehand. With packing, its rows
are distributed over passes of `efficiency.tokens_per_pass` tokens, and each pass but the last is followed by its own
backward pass, so that only one pass's activations are alive at a time. Losses and gradients are those of the whole
micro-batch: each pass counts for its share of the rows or tokens, as the loss type divides by them.
"""

from __future__ import annotations

import logging
import math
from statistics import fmean
from typing import Any

import torch

from pipeline.schema.efficiency import Efficiency
from pipeline.training.rows import agreed, balanced, loss_mask, select, share, weighed

log = logging.getLogger(__name__)

FILL = "packing/fill"
"""The metric: tokens of a micro-batch, divided by those that its passes have room for."""
FILLS, FULL_ENOUGH = 32, 0.5
"""So many micro-batches in a row whose passes are emptier than this on average are worth a warning."""


class Passes:
    """Mixin for `GRPOTrainer`; it is on with `efficiency.packing`.

    Attributes:
        fills: how full the passes of the last micro-batches were; `None` once it was told that they are rather empty.
    """

    fills: tuple[float, ...] | None = ()
    efficiency: Efficiency
    accelerator: Any
    args: Any
    model: Any
    loss_type: str
    _metrics: Any

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        parts = self._parts(inputs) if self.efficiency.packing and self._divisible() else [inputs]
        if len(parts) == 1:
            return super()._compute_loss(model, parts[0])  # type: ignore[misc, no-any-return]
        metrics = self._metrics["train"]
        before = {name: len(values) for name, values in metrics.items()}
        done = torch.zeros((), device=self.accelerator.device)
        for part in parts[:-1]:
            with self.accelerator.no_sync(model):  # gradients are exchanged once, after the last pass
                loss = self._part_loss(model, part, inputs)
                self.accelerator.backward(loss)
            done += loss.detach()
        loss = self._part_loss(model, parts[-1], inputs)
        tokens = [int(loss_mask(part).sum()) for part in parts]
        for name, values in metrics.items():
            fresh = values[before.get(name, 0) :]
            if len(fresh) == len(parts):
                values[before.get(name, 0) :] = [_merged(name, fresh, tokens)]
        return loss + done

    def _part_loss(self, model: Any, part: dict[str, Any], whole: dict[str, Any]) -> torch.Tensor:
        with weighed(self, share(self.loss_type, part, whole)):
            return super()._compute_loss(model, part)  # type: ignore[misc, no-any-return]

    def _divisible(self) -> bool:
        """Whether the loss of a micro-batch is a sum over its rows, and gradients may be added up pass by pass."""
        trainer: Any = self
        whole = trainer._entropy_bonus_enabled or trainer.top_entropy_quantile < 1.0 or trainer.aux_loss_enabled
        return bool(self.model.training and torch.is_grad_enabled()) and not whole and not trainer.is_deepspeed_enabled

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The passes of a micro-batch: as many in every process, with as many rows, as TRL gathers metrics of rows.

        Passes and rows that only another process needs have nothing to learn in them, and take no time to speak of.
        """
        completions_B = inputs["completion_mask"].sum(1)
        lengths = (inputs["prompt_mask"].sum(1) + completions_B).where(completions_B > 0, 0).tolist()
        budget = self.efficiency.tokens_per_pass
        passes = balanced(lengths, budget)
        self._watch_fill(sum(lengths) / (len(passes) * budget), len(lengths))
        wanted = agreed(self, len(passes))
        if wanted > len(passes):
            passes = balanced(lengths, budget, wanted)
        if wanted == 1:
            return [inputs]
        passes += [[]] * (wanted - len(passes))
        rows = agreed(self, max(map(len, passes))) if self.accelerator.num_processes > 1 else 0
        return [select(inputs, part, rows) for part in passes]

    def _watch_fill(self, fill: float, rows: int) -> None:
        """Log how full the passes of a micro-batch are, and tell what makes them fuller if they stay rather empty."""
        self._metrics["train"][FILL].append(fill)
        accumulated = self.args.gradient_accumulation_steps
        if self.fills is None or accumulated == 1:
            return
        self.fills = (*self.fills, fill)[-FILLS:]
        if len(self.fills) == FILLS and fmean(self.fills) < FULL_ENOUGH:
            log.warning(
                "training passes are %.0f %% full: the %d rows of a micro-batch are far from"
                " efficiency.tokens_per_pass (%d). A larger trainer.per_device_train_batch_size with fewer"
                " gradient_accumulation_steps (%d now) makes fewer passes of the same rollouts, in no more memory",
                100 * fmean(self.fills),
                rows,
                self.efficiency.tokens_per_pass,
                accumulated,
            )
            self.fills = None


def _merged(name: str, values: list[float], tokens: list[int]) -> float:
    """One number of a metric for the whole micro-batch from those of its passes."""
    known = [(value, size) for value, size in zip(values, tokens, strict=True) if not math.isnan(value)]
    if not known:
        return math.nan
    if name.endswith(("min", "max")):
        return (min if name.endswith("min") else max)(value for value, _ in known)
    return sum(value * size for value, size in known) / max(sum(size for _, size in known), 1)
