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
from pipeline.training.parallel.collectives import summed
from pipeline.training.parallel.expert_parallel import expert_ranks


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
    def trained(self, labels_BT: Tensor, in_step: Any = None) -> Iterator[None]:
        """Train the blocks in the forward passes within, which are those of one micro-batch; log how they did.

        Args:
            labels_BT: tokens to predict, -100 elsewhere.
            in_step: tokens of the optimizer step, if the trainer divides its loss by them.
        """
        self._log_speculation()
        if self.spec is None or self.objective is None:
            yield
            return
        weight = self.spec.weight_at(self.trainer.state.global_step, self.trainer.state.max_steps)
        with self.objective.weighed(weight, self._targets(labels_BT, in_step), labels_BT):
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
        """How well the model's own rollouts were drafted, over all processes, if they were. Collective."""
        told, args = getattr(self.trainer.model, "speculation", None), self.trainer.args
        if told is None or not (getattr(args, "generation_kwargs", None) or {}).get("use_mtp"):
            return
        self.trainer.model.speculation = type(told)()
        of_all = type(told)(*map(int, summed(self.trainer.accelerator, told.rounds, told.drafted, told.accepted)))
        if of_all.rounds:
            metrics = self.trainer._metrics["train"]
            metrics["speculation/acceptance"].append(of_all.acceptance)
            metrics["speculation/tokens_per_pass"].append(of_all.tokens_per_pass)

    def _targets(self, labels_BT: Tensor, in_step: Any) -> Tensor:
        """Tokens of the whole optimizer step that this process's loss is divided by, as its trainer divides its own."""
        trainer = self.trainer
        if in_step is None:
            return (labels_BT != IGNORED).sum() * trainer.current_gradient_accumulation_steps  # type: ignore[no-any-return]
        across = trainer.args.average_tokens_across_devices
        batches = trainer.accelerator.num_processes // expert_ranks() if across else 1
        return torch.as_tensor(in_step) / batches

    def _log_depths(self, weight: float) -> None:
        assert self.objective is not None
        metrics = self.trainer._metrics["train"]
        for depth, count in enumerate(self.objective.read(), 1):
            counted = map(float, (count.loss, count.tokens, count.agreed))
            loss, tokens, agreed = summed(self.trainer.accelerator, *counted)
            if tokens:
                metrics[f"mtp/loss_{depth}"].append(loss / tokens)
                metrics[f"mtp/acceptance_{depth}"].append(agreed / tokens)
        metrics["mtp/weight"].append(weight)


class MultiToken:
    """Mixin for TRL's trainers, to be named first: `mtp` and `document_ends` are arguments of its own; see
    `BlockTraining`."""

    model: Any

    def __init__(
        self, *args: Any, mtp: MtpSpec | None = None, document_ends: tuple[int, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.blocks = BlockTraining(self, mtp, document_ends)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loss; the gradient of the blocks' loss joins it in the model."""
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        with self.blocks.trained(_labels(inputs), kwargs.get("num_items_in_batch")):
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.blocks.clip(model, super()._clip_grad_norm)  # type: ignore[misc]


def _labels(inputs: dict[str, Any]) -> Tensor:
    """Labels of a batch: its own, or those of the completions that a student has sampled for it."""
    if "labels" in inputs:
        labels: Tensor = inputs["labels"]
        return labels
    return completion_labels(inputs["prompt_ids"], inputs["completion_ids"], inputs["completion_mask"])


def completion_labels(prompt_ids_BP: Tensor, completion_ids_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """(B, P + C) completion tokens that count, -100 elsewhere."""
    completions_BC = completion_ids_BC.masked_fill(mask_BC == 0, IGNORED)
    return torch.cat([torch.full_like(prompt_ids_BP, IGNORED), completions_BC], dim=1)
