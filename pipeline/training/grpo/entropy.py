"""The bonus for entropy in the loss, whose coefficient may follow the entropy (Skywork-OR1, arXiv 2505.22312)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bonus(trainer: Any, entropy_BC: Tensor, counted_BC: Tensor) -> Tensor:
    """The coefficient times the mean entropy of the tokens that count, as a micro-batch's part of a step's loss.

    Collective at the last micro-batch of a step, where the coefficient is adaptive.

    Args:
        trainer: a `GrpoTrainer`; TRL keeps the coefficient there, and in checkpoints.
        entropy_BC: of the policy's distribution at each token, in nats.
        counted_BC: tokens that count.
    """
    total, tokens = (entropy_BC * counted_BC).sum(), counted_BC.sum()
    coefficient = trainer.entropy_coef
    if trainer.use_adaptive_entropy:
        if trainer._last_world_entropy > trainer.args.entropy_target:
            coefficient = 0.0
        seen, before = torch.stack([total.detach(), tokens]), trainer._entropy_window_stats
        trainer._entropy_window_stats = seen if before is None else before + seen
        if trainer.accelerator.sync_gradients:
            _adapt(trainer)
    if trainer.accelerator.sync_gradients:
        trainer._metrics["train"]["entropy_coef"].append(trainer.entropy_coef)
    result: Tensor = coefficient * total / tokens.clamp(min=1.0) / trainer.current_gradient_accumulation_steps
    return result


def _adapt(trainer: Any) -> None:
    """Move the coefficient up where a step's entropy, over all processes, is below the target, and down elsewhere."""
    args = trainer.args
    total, tokens = trainer.accelerator.reduce(trainer._entropy_window_stats, reduction="sum").tolist()
    trainer._last_world_entropy, trainer._entropy_window_stats = total / max(tokens, 1.0), None
    if trainer._last_world_entropy <= args.entropy_target:
        trainer.entropy_coef = min(trainer.entropy_coef + args.entropy_coef_delta, args.entropy_coef_max)
    else:
        trainer.entropy_coef = max(trainer.entropy_coef - args.entropy_coef_delta, args.entropy_coef_min)
