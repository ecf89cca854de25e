"""Learning rates of a stage that goes on with another one than it was saved with."""

from __future__ import annotations

from typing import Any


def follow_rate(optimizer: Any, scheduler: Any, rates: list[float]) -> None:
    """Give the groups of an optimizer that was loaded other rates than it was saved with; `rates` are the first ones.

    Nothing changes where they are the same.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if group["initial_lr"] != rate:
            group["lr"] *= rate / group["initial_lr"]
            group["initial_lr"] = rate
    inner = getattr(scheduler, "scheduler", scheduler)
    if list(inner.base_lrs) != rates:
        inner.base_lrs = list(rates)
        inner._last_lr = [group["lr"] for group in optimizer.param_groups]
