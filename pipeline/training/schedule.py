"""Arithmetic of GRPO's batches: groups, generation batches, and the steps at which a run can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_cycle(trainer: Mapping[str, Any], processes: int | None) -> int:
    """Make sure that groups are whole and that checkpoints fall between two generation batches.

    A generation batch serves `steps_per_generation * num_iterations` micro-batches. A checkpoint taken before they are
    used up would lose the rest of them, and the resumed run would differ from an uninterrupted one.

    Args:
        trainer: GRPOConfig fields, our defaults included.
        processes: number of processes, if it is known.

    Returns:
        The cycle: optimizer steps between two moments at which a run can be resumed exactly.

    Raises:
        ValueError: says which numbers do not fit, and what would.
    """
    group, micro = trainer["num_generations"], trainer["per_device_train_batch_size"]
    accumulation, iterations = trainer["gradient_accumulation_steps"], trainer["num_iterations"]
    if group < 2:
        raise ValueError("trainer.num_generations must be 2 or more: advantages compare the rollouts of a group")
    batch, steps = trainer.get("generation_batch_size"), trainer.get("steps_per_generation")
    if batch is not None and steps is not None:
        raise ValueError("give trainer.generation_batch_size or trainer.steps_per_generation, not both")
    if batch is not None and processes is not None:
        if batch % (micro * processes):
            raise ValueError(
                f"trainer.generation_batch_size={batch} is no multiple of per_device_train_batch_size={micro}"
            )
        steps = batch // (micro * processes)
    elif steps is None and batch is None:
        steps = accumulation
    if processes is not None and steps is not None and (micro * processes * steps) % group:
        raise ValueError(
            f"a generation batch of {micro * processes * steps} completions (per_device_train_batch_size={micro} x"
            f" {steps} steps) does not hold whole groups of num_generations={group}"
        )
    if steps is None:
        return 1
    uses = steps * iterations
    if uses % accumulation and accumulation % uses:
        raise ValueError(
            f"a generation batch serves {uses} micro-batches (steps_per_generation x num_iterations), which does not"
            f" fit gradient_accumulation_steps={accumulation}: one must divide the other"
        )
    cycle = max(1, uses // accumulation)
    save_steps = trainer["save_steps"]
    if save_steps < 1 or save_steps % cycle:
        raise ValueError(
            f"trainer.save_steps={save_steps} would save in the middle of a generation batch, which cannot be resumed"
            f" exactly: make it a multiple of {cycle}"
        )
    return int(cycle)
