"""TRL's SFT trainer with exact resumption; it trains on rows that are tokenised already."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from model.balance_loss import Sequences
from model.labels import IGNORED
from pipeline.rollout.adapted import base_of
from pipeline.training import adapters, experts, setup, varlen
from pipeline.training.parallel.expert_parallel import ExpertParallel, expert_ranks
from pipeline.training.trainers.mtp import MultiToken
from pipeline.training.trainers.resumable import Resumable
from pipeline.training.trainers.step_share import StepShare


class SftTrainer(MultiToken, StepShare, Resumable, ExpertParallel, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer`, resumable to the bit on one device, with multi-token prediction and experts on several."""

    def counted(self, batch: dict[str, Any]) -> int:
        """Sequences, as gates are told of them, if a loss balances experts over each."""
        if not experts.balances_sequences(self):
            return 0
        return int(Sequences.of(batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")).counted())

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, num_items_in_batch: Any = None) -> Any:
        """TRL's hook: gradients of the blocks' loss and of the balance loss join it in the model, each as the step's
        mean; metrics are means over tokens."""
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch)
        if self.in_step:
            experts.share(self, self.share(inputs))
        targets = (inputs["labels"][..., 1:] != IGNORED).sum()  # TRL's collators make no `shift_labels`
        step_tokens = targets if num_items_in_batch is None else num_items_in_batch / self._ranks_of_labels
        with self.blocks.trained(inputs["labels"], step_tokens):
            loss = super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch)
        self.weigh(targets, "entropy", "mean_token_accuracy")
        return loss

    @property
    def _ranks_of_labels(self) -> int:
        """The ranks whose labels transformers counts together, and whose gradients are averaged."""
        return self.accelerator.num_processes // expert_ranks() if self.args.average_tokens_across_devices else 1


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
