"""The reference model of GRPO, kept in step with the policy by the names of its weights.

TRL goes through the weights of both models in their order, and stops where one has more. The policy may have more:
blocks of multi-token prediction, which the reference has no use for. And what is no parameter counts too: the biases
that balance a DeepSeek-V3's experts choose which of them are used.
"""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.callbacks import SyncRefModelCallback


class SyncByName(SyncRefModelCallback):  # type: ignore[misc]
    """TRL's callback; its arguments are the same."""

    @staticmethod
    @torch.no_grad()
    def sync_target_model(model: Any, target_model: Any, alpha: float) -> None:
        """Move every weight of the reference a share `alpha` towards the policy's; buffers become the policy's."""
        weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        for name, weight in target_model.named_parameters():
            weight.data.mul_(1.0 - alpha).add_(weights[name].data, alpha=alpha)
        for name, buffer in target_model.named_buffers():
            buffer.data.copy_(buffers[name].data)


def sync_by_name(trainer: Any) -> None:
    """Replace TRL's callback in a trainer that syncs its reference."""
    if trainer.args.sync_ref_model:
        trainer.remove_callback(SyncRefModelCallback)
        trainer.add_callback(SyncByName(ref_model=trainer.ref_model, accelerator=trainer.accelerator))
