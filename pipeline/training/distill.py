"""TRL's on-policy distillation trainer with exact resumption."""

from __future__ import annotations

from trl import DistillationTrainer

from pipeline.training.resumable import Resumable


class DistillTrainer(Resumable, DistillationTrainer):  # type: ignore[misc]
    """`trl.DistillationTrainer`, resumable to the bit on one device."""
