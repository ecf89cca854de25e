"""What the processes of a training tell each other. Every process has to make each of these calls, in one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def summed(accelerator: Any, *values: float) -> list[float]:
    """Each value summed over all processes, in float32."""
    of_all = accelerator.reduce(torch.tensor(values, dtype=torch.float32, device=accelerator.device))
    return list(of_all.tolist())


def largest(accelerator: Any, number: int) -> int:
    """The largest of a number over all processes, so that all make as many collective calls."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max().item())


def by_first(accelerator: Any, decide: Callable[[], T]) -> T:
    """What the first process decides, in every process: others may see other files, or round otherwise."""
    found: list[Any] = [decide() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(found, from_process=0)
    decided: T = found[0]
    return decided
