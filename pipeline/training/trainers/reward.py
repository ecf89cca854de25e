"""TRL's reward trainer with exact resumption, for rewards of whole answers and of steps.

TRL 1.16 has no trainer for process rewards: behind every step, the logit of the chance that the answer comes out right.
The model stays the classifier that reward models are; its loss differs, binary cross-entropy of the labels behind each
step (Math-Shepherd, arXiv 2312.08935, equation 3), and so do batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import trl
from torch.nn.functional import binary_cross_entropy_with_logits

from model.labels import IGNORED
from pipeline.training.parallel.collectives import summed
from pipeline.training.trainers.resumable import Resumable
from pipeline.training.trainers.step_share import StepShare
from rewards.process import SURE, logits_everywhere, padded

NO_LABEL = float(IGNORED)
"""The label of a token that ends no step: transformers does not count it among the labels of an optimizer step."""


class RewardTrainer(StepShare, Resumable, trl.RewardTrainer):  # type: ignore[misc]
    """`trl.RewardTrainer`, resumable to the bit on one device; it trains on pairs that are tokenised already."""

    def counted(self, batch: Any) -> int:
        """Pairs: the chosen answers come first, then the rejected ones."""
        return len(batch["input_ids"]) // 2

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's hook: a pair counts alike in each micro-batch; the last one of an epoch may have fewer."""
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.weigh(self.counted(inputs), "accuracy", "margin", "mean_reward")
        for name in ("min_reward", "max_reward"):
            del self._metrics["train"][name]
            self.metrics.extreme(name, outputs.logits)
        return loss * self.share(inputs) * self.current_gradient_accumulation_steps  # which transformers divides by


class StepTrainer(Resumable, trl.RewardTrainer):  # type: ignore[misc]
    """Learns from a data set of `pipeline.data.step_rows`.

    Args:
        pad: the padding token.
        given: arguments of `trl.RewardTrainer`.
    """

    loss_is_scaled_for_ga = True  # by the steps of all micro-batches: rows have more and fewer of them

    def __init__(self, *, pad: int, **given: Any) -> None:
        super().__init__(data_collator=lambda rows: collated(rows, pad), **given)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset  # tokenised already

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "ends", "labels"]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A micro-batch's part of the mean cross-entropy of an optimizer step's steps, of all processes where
        `trainer.average_tokens_across_devices` is on; logs which share of all processes' steps is on the right side."""
        labels_BT = inputs.pop("labels")
        logits_BT = logits_everywhere(model, **inputs)
        loss, right_S = step_loss(logits_BT, labels_BT)
        if num_items_in_batch is not None:
            gathered = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * right_S.numel() / num_items_in_batch * gathered  # ranks' gradients are averaged
        (tokens,) = summed(self.accelerator, float(inputs["attention_mask"].sum()))
        self._total_train_tokens += int(tokens)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self.metrics.total("step_accuracy", right_S.sum(), right_S.numel())
        return (loss, logits_BT) if return_outputs else loss


def step_loss(logits_BT: torch.Tensor, labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the tokens with a label, and (S,) which of these are on the label's side of one half.

    Args:
        logits_BT: behind every token.
        labels_BT: a chance, or `NO_LABEL`.
    """
    labelled_BT = labels_BT != NO_LABEL
    logits_S, labels_S = logits_BT[labelled_BT].float(), labels_BT[labelled_BT]
    return binary_cross_entropy_with_logits(logits_S, labels_S), (logits_S > 0) == (labels_S > SURE)


def collated(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch: token ids padded on the right, their mask, and a label behind each step."""
    longest = max(len(row["input_ids"]) for row in rows)
    labels_BT = torch.full((len(rows), longest), NO_LABEL)
    for at, row in enumerate(rows):
        labels_BT[at, row["ends"]] = torch.tensor(row["labels"])
    ids_BT = torch.tensor([padded(row["input_ids"], longest, pad) for row in rows])
    lengths_B = torch.tensor([len(row["input_ids"]) for row in rows])
    mask_BT = (torch.arange(longest) < lengths_B[:, None]).long()
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
