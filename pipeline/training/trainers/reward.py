"""TRL's reward trainer with exact resumption; it trains on pairs that are tokenised already."""

from __future__ import annotations

import trl

from pipeline.training.trainers.resumable import Resumable


class RewardTrainer(Resumable, trl.RewardTrainer):  # type: ignore[misc]
    """`trl.RewardTrainer`, resumable to the bit on one device."""
