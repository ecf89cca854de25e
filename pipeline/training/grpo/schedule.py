"""Arithmetic of GRPO's batches: groups, generation batches, and the steps at which a run can be resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MEAN_OF_TOKENS = frozenset({"bnpo"})
"""Loss types that divide by the completion tokens of a micro-batch. All others divide by the number of its rows, or by
the tokens of a generation batch."""


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
                f"trainer.generation_batch_size={batch} is not a multiple of per_device_train_batch_size={micro}"
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


def merged(args: Any, router_loss: bool) -> dict[str, Any]:
    """Fields that make a single micro-batch of those which share a generation batch and an optimizer step.

    Where passes bound the memory, a micro-batch may be as large as the step, and more rows fill passes better. Its loss
    is the mean of the losses that the smaller micro-batches had, so gradients stay the same.

    Args:
        args: a GRPOConfig.
        router_loss: whether a loss balances the experts over the rows of a micro-batch.

    Returns:
        An empty mapping where a micro-batch is computed as a whole, or its loss is a mean over its own tokens.
    """
    whole = args.entropy_coef or args.use_adaptive_entropy or args.top_entropy_quantile < 1.0 or router_loss
    if whole or args.deepspeed_plugin is not None or args.loss_type in MEAN_OF_TOKENS:
        return {}
    together = math.gcd(args.gradient_accumulation_steps, args.steps_per_generation)
    return {
        "per_device_train_batch_size": args.per_device_train_batch_size * together,
        "gradient_accumulation_steps": args.gradient_accumulation_steps // together,
        "steps_per_generation": args.steps_per_generation // together,
        "generation_batch_size": None,  # follows from the other three, unchanged
    }


def outlook(trainer: Mapping[str, Any], tokens: int, processes: int) -> str:
    """What a stage is about to do, in a line: rollouts, groups and passes of a step, and how many steps there are.

    Args:
        trainer: GRPOConfig fields, our defaults included.
        tokens: the most that a rollout may have.
        processes: trainers that share the work.
    """
    accumulated, group, times = (
        trainer[k] for k in ("gradient_accumulation_steps", "num_generations", "num_iterations")
    )
    rows = trainer["per_device_train_batch_size"] * processes
    batch = trainer.get("generation_batch_size") or rows * (trainer.get("steps_per_generation") or accumulated)
    uses = batch // rows * times
    each = max(1, uses // accumulated)
    rollouts = batch * max(1, accumulated // uses)
    steps = trainer.get("max_steps", -1)
    asked = math.ceil(steps / each) * (rollouts // group)
    whole = f"{_some(steps, 'step')} ask{'s' * (steps == 1)} {_some(asked, 'question')}"
    return (
        f"{'a step' if each == 1 else f'{each} steps'}: {rollouts:,} rollouts of at most {tokens:,} tokens"
        f" ({_some(rollouts // group, 'group')} of {group}),"
        f" trained on {'once' if times == 1 else f'{times} times'};"
        f" a step takes {accumulated:,} pass{'es' * (accumulated != 1)} of {rows:,}."
        f" {whole if steps > 0 else 'All problems are asked ' + _times(trainer.get('num_train_epochs', 1))}"
    )


def _some(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _times(number: float) -> str:
    return "once" if number == 1 else f"{number:g} times"
