"""TRL's on-policy distillation trainer with exact resumption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import DistillationTrainer

from pipeline.rollout.stops import FirstLook, Stops
from pipeline.training import stopping
from pipeline.training.trainers.mtp import MultiToken, completion_labels
from pipeline.training.trainers.resumable import Resumable


class DistillTrainer(MultiToken, Resumable, DistillationTrainer):  # type: ignore[misc]
    """`trl.DistillationTrainer`, resumable to the bit on one device, with multi-token prediction.

    Args:
        stop: texts and token ids that end a completion; the other arguments are TRL's.
    """

    def __init__(self, *args: Any, stop: Sequence[str | int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_model.to(self.accelerator.device)  # under FSDP, accelerate leaves it to whoever shards it
        self.stops, self.first_look = Stops.of(self._tokenizer, stop), FirstLook(self._tokenizer.eos_token)
        stopping.prepare(self, self.stops)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's hook: the gradient of the blocks' loss joins it in the model; metrics are means over tokens."""
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        mask_BC = inputs["completion_mask"]
        labels_BT = completion_labels(inputs["prompt_ids"], inputs["completion_ids"], mask_BC)
        step_tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes  # as TRL divides
        with self.blocks.trained(labels_BT, step_tokens):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.weigh(mask_BC.sum(), "entropy")
        return loss

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        self.check_weights()
        with stopping.until(self.accelerator.unwrap_model(self.model), self.stops):
            completion_ids = super()._generate_single_turn(*args, **kwargs)
        return [self.stops.cut(ids) for ids in completion_ids]

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        generated = super()._generate(*args, **kwargs)
        metrics, device = self._metrics["train"], self.accelerator.device
        for name in [name for name in metrics if name.startswith("completions/")]:
            metrics[name].pop()  # to TRL, what ends with a text was cut off
        told = [[len(ids), stopping.ended(self, ids)] for ids in generated[1]]
        every = self.accelerator.gather(torch.tensor(told, device=device))
        stopping.log_lengths(self, every[:, 0], every[:, 1].bool())
        return generated
