"""Training the blocks of multi-token prediction along with a stage's own loss.

    mtp: {weight: 0.3, final_weight: 0.1, switch_at: 0.68}

In pre-training the blocks teach the decoder to look ahead, and the decoder learns from them. In reinforcement learning
they learn from what the policy samples, so that they go on to draft what it will say; there, `detach` keeps their loss
away from the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from model.labels import IGNORED
from model.mtp import Objective, blocks
from pipeline.schema.mtp import MtpSpec


class BlockTraining:
    """The blocks of a trainer's model, trained as a stage says, or left as they are.

    Args:
        trainer: one of TRL's; its metrics are added to.
        spec: how the blocks are trained; not at all if not given.
        document_ends: tokens that end a document; see `model.mtp.Objective`.

    Raises:
        ValueError: the model has no prediction blocks, or is trained in float16, whose scaled gradients this loss
            would not be part of.
    """

    def __init__(self, trainer: Any, spec: MtpSpec | None, document_ends: tuple[int, ...] = ()) -> None:
        self.trainer, self.spec = trainer, spec
        self.objective: Objective | None = None
        if spec is None:
            for block in blocks(trainer.model):
                block.requires_grad_(False)
            return
        if trainer.args.fp16:
            raise ValueError("mtp: float16 is not supported; set trainer.bf16")
        self.objective = Objective(trainer.model, spec.detach, document_ends)

    @contextmanager
    def trained(self, labels_BT: Tensor, step_tokens: Any) -> Iterator[None]:
        """Train the blocks in the forward passes within, which are those of one micro-batch; log how they did.

        Args:
            labels_BT: tokens to predict, -100 elsewhere.
            step_tokens: tokens of the optimizer step, a rank: what the trainer divides its own loss by, too.
        """
        self._log_speculation()
        if self.spec is None or self.objective is None:
            yield
            return
        weight = self.spec.weight_at(self.trainer.state.global_step, self.trainer.state.max_steps)
        with self.objective.weighed(weight, step_tokens, labels_BT):
            yield
        self._log_depths(weight)

    def clip(self, model: Any, clip: Callable[[Any], Any]) -> Any:
        """Clip gradients; blocks that leave the rest alone have a norm, and a limit to it, of their own.

        Args:
            model: the trainer's.
            clip: clips those of the whole model.
        """
        if self.spec is None or self.objective is None or not self.spec.detach:
            return clip(model)
        trainer = self.trainer
        blocks = [weight for block in self.objective.blocks for weight in block.parameters()]
        ours = {id(weight) for weight in blocks}
        others = [weight for weight in model.parameters() if id(weight) not in ours]
        trainer.accelerator.clip_grad_norm_(blocks, trainer.args.max_grad_norm)
        return trainer.accelerator.clip_grad_norm_(others, trainer.args.max_grad_norm)

    def _log_speculation(self) -> None:
        """How well the model's own rollouts were drafted, if they were."""
        told, args = getattr(self.trainer.model, "speculation", None), self.trainer.args
        if told is None or not (getattr(args, "generation_kwargs", None) or {}).get("use_mtp"):
            return
        self.trainer.model.speculation = type(told)()
        metrics = self.trainer.metrics
        metrics.total("speculation/acceptance", told.accepted, told.drafted)
        metrics.total("speculation/tokens_per_pass", told.rounds + told.accepted, told.rounds)

    def _log_depths(self, weight: float) -> None:
        assert self.objective is not None
        for depth, count in enumerate(self.objective.read(), 1):
            self.trainer.metrics.total(f"mtp/loss_{depth}", count.loss, count.tokens)
            self.trainer.metrics.total(f"mtp/acceptance_{depth}", count.agreed, count.tokens)
        self.trainer._metrics["train"]["mtp/weight"].append(weight)


class MultiToken:
    """Mixin for TRL's trainers, to be named first: `mtp` and `document_ends` are arguments of its own; see
    `BlockTraining`. The trainer says in `compute_loss` when its `blocks` are trained."""

    model: Any

    def __init__(
        self, *args: Any, mtp: MtpSpec | None = None, document_ends: tuple[int, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.blocks = BlockTraining(self, mtp, document_ends)

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.blocks.clip(model, super()._clip_grad_norm)  # type: ignore[misc]


def completion_labels(prompt_ids_BP: Tensor, completion_ids_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """(B, P + C) completion tokens that count, -100 elsewhere."""
    completions_BC = completion_ids_BC.masked_fill(mask_BC == 0, IGNORED)
    return torch.cat([torch.full_like(prompt_ids_BP, IGNORED), completions_BC], dim=1)
