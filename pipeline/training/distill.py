"""TRL's on-policy distillation trainer with exact resumption."""

from __future__ import annotations

from trl import DistillationTrainer

from pipeline.training.mtp import MultiToken
from pipeline.training.resumable import Resumable


class DistillTrainer(MultiToken, Resumable, DistillationTrainer):  # type: ignore[misc]
    """`trl.DistillationTrainer`, resumable to the bit on one device, with multi-token prediction."""
