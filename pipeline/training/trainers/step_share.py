"""What a micro-batch counts in an optimizer step whose loss is a mean over sequences, or pairs of them."""

from __future__ import annotations

from typing import Any

from pipeline.training.parallel.collectives import summed


class StepShare:
    """Mixin for trainers: counts what an optimizer step has ahead, as transformers counts labels.

    A mean over each micro-batch would count those more whose micro-batch has fewer: the last one of an epoch, or any
    that is packed.
    """

    accelerator: Any
    in_step: float = 0.0
    """What the present step has, over all ranks."""

    def counted(self, batch: Any) -> int:
        """What the loss of this rank's part of a micro-batch is a mean over."""
        raise NotImplementedError

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' hook: the micro-batches of an optimizer step, and their labels. Collective."""
        batches, labels = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        (self.in_step,) = summed(self.accelerator, sum(map(self.counted, batches)))
        return batches, labels

    def share(self, batch: Any) -> float:
        """What a micro-batch counts in its step, times the ranks, whose gradients are averaged."""
        return self.counted(batch) * float(self.accelerator.num_processes) / max(1.0, self.in_step)
