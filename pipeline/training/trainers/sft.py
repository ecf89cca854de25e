"""TRL's SFT trainer with exact resumption; it trains on rows that are tokenised already."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from pipeline.rollout.adapted import base_of
from pipeline.training import adapters, experts, setup, varlen
from pipeline.training.parallel.expert_parallel import ExpertParallel
from pipeline.training.trainers.mtp import MultiToken
from pipeline.training.trainers.resumable import Resumable


class SftTrainer(MultiToken, Resumable, ExpertParallel, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer`, resumable to the bit on one device, with multi-token prediction and experts on several."""


def build(config: Any, adapter: adapters.Prepared | None = None, **arguments: Any) -> SftTrainer:
    """The trainer of a stage, with the precision and the balancing of experts that its config asks for.

    Args:
        config: has `precision` and `routing`.
        adapter: what is trained in place of all weights, if that is wished.
        arguments: those of `SftTrainer`.
    """
    trainer = adapters.carry(SftTrainer, adapter, **arguments)
    varlen.install(base_of(trainer.model))  # packed rows come with the boundaries of their examples
    setup.set_precision(trainer.model, config.precision)
    experts.balance(trainer, config.routing)
    return trainer
