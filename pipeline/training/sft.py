"""TRL's SFT trainer with exact resumption; it trains on rows that are tokenised already."""

from __future__ import annotations

from trl import SFTTrainer

from pipeline.training.mtp import MultiToken
from pipeline.training.resumable import Resumable


class SftTrainer(MultiToken, Resumable, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer`, resumable to the bit on one device, with multi-token prediction."""
