"""TRL's on-policy distillation trainer with exact resumption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import DistillationTrainer

from pipeline.rollout.stops import Stops
from pipeline.training import stopping
from pipeline.training.trainers.mtp import MultiToken
from pipeline.training.trainers.resumable import Resumable


class DistillTrainer(MultiToken, Resumable, DistillationTrainer):  # type: ignore[misc]
    """`trl.DistillationTrainer`, resumable to the bit on one device, with multi-token prediction.

    Args:
        stop: texts and token ids that end a completion; the other arguments are TRL's.
    """

    def __init__(self, *args: Any, stop: Sequence[str | int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_model.to(self.accelerator.device)  # under FSDP, accelerate leaves it to whoever shards it
        self.stops = Stops.of(self._tokenizer, stop)
        stopping.prepare(self, self.stops)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        self.check_weights()
        with stopping.until(self.accelerator.unwrap_model(self.model), self.stops):
            completion_ids = super()._generate_single_turn(*args, **kwargs)
        return [self.stops.cut(ids) for ids in completion_ids]
