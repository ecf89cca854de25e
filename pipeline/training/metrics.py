"""Metrics of training passes: sums and weights that stay on the device, and one reduction when they are logged.

A mean over passes, micro-batches and processes is that of all their tokens (or rows), however they were divided. TRL's
trainers log the mean over micro-batches of what each of them had, in which the tokens of a short one count more.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

SQUARED = " squared"
"""Follows the name of an effective sample size, in what the squares of its weights are added up under."""


class Metrics:
    """What passes were like since the last time that this was read.

    Every process has to add the same names; values may differ, and a process without tokens adds weight 0.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._extremes: dict[str, Tensor] = {}

    def mean(self, name: str, values: Tensor, mask_BC: Tensor) -> None:
        """Add to a mean over tokens, or over rows where there is one value a row, (B, 1)."""
        weight = mask_BC.any(1, keepdim=True) if values.shape != mask_BC.shape else mask_BC
        counted = values.detach().float().masked_fill(weight == 0, 0.0) * weight
        self.total(name, counted.sum(), weight.sum())

    def effective(self, name: str, weights: Tensor) -> None:
        """Add importance weights to an effective sample size, as a share of the samples: (Σw)² / (n Σw²) (Kish)."""
        for added_to, values in ((name, weights), (name + SQUARED, weights.square())):
            self.total(added_to, values.detach().float().sum(), values.numel())

    def total(self, name: str, value: Any, weight: Any) -> None:
        """Add a sum, and what it is a sum over."""
        device = next((each.device for each in (value, weight) if isinstance(each, Tensor)), None)
        pair = torch.stack([torch.as_tensor(each, dtype=torch.float32, device=device) for each in (value, weight)])
        self._sums[name] = self._sums[name] + pair.detach() if name in self._sums else pair.detach()

    def extreme(self, name: str, values: Tensor) -> None:
        """Keep the largest value, or the smallest where `min` is a word of the name; there may be none."""
        signed = _sign(name) * values.detach().float().flatten()
        found = torch.cat([signed, signed.new_full((1,), -torch.inf)]).max()
        self._extremes[name] = torch.maximum(found, self._extremes[name]) if name in self._extremes else found

    def read(self, accelerator: Any) -> dict[str, float]:
        """One number for each name, over all processes, and begin anew. Collective; a name without values is NaN."""
        sums, extremes = dict(sorted(self._sums.items())), dict(sorted(self._extremes.items()))
        self.__init__()  # type: ignore[misc]
        if not sums and not extremes:
            return {}
        flat = torch.cat([value.flatten().to(accelerator.device) for value in (*sums.values(), *extremes.values())])
        everyone = accelerator.gather(flat[None])
        pairs = everyone[:, : 2 * len(sums)].sum(0).view(-1, 2)
        means = (pairs[:, 0] / pairs[:, 1]).tolist()  # 0 / 0 is NaN: nothing was counted
        found = dict(zip(sums, means, strict=True))
        for name in [name for name in sums if name.endswith(SQUARED)]:
            squares, size = found.pop(name), name.removesuffix(SQUARED)
            found[size] = found[size] ** 2 / squares if squares else float("nan")
        for name, value in zip(extremes, everyone[:, 2 * len(sums) :].amax(0).tolist(), strict=True):
            found[name] = _sign(name) * value if value > float("-inf") else float("nan")
        return found


def _sign(name: str) -> float:
    return -1.0 if "min" in re.split("[/_]", name) else 1.0


class Measured:
    """Mixin for TRL's trainers, to be named before them: logs its `metrics` among TRL's own."""

    accelerator: Any
    model: Any
    _metrics: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = Metrics()

    def weigh(self, weight: Any, *names: str) -> None:
        """Let means that TRL has just logged of a micro-batch, over all processes, count for what they are means of.

        Args:
            weight: tokens, or rows, of this process's part of the micro-batch.
            names: of the metrics.
        """
        for name in names:
            (mean,) = self._metrics["train"].pop(name)
            self.metrics.total(name, mean * weight, weight)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's hook: with the means over passes, micro-batches and processes. Collective in training."""
        if self.model.training:
            for name, value in self.metrics.read(self.accelerator).items():
                if not math.isnan(value):  # nothing was counted
                    self._metrics["train"][name].append(value)
        super().log(logs, start_time)  # type: ignore[misc]
