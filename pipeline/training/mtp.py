"""Training the blocks of multi-token prediction along with a stage's own loss.

    mtp: {weight: 0.3, final_weight: 0.1, switch_at: 0.68}

In pre-training the blocks teach the decoder to look ahead, and the decoder learns from them. In reinforcement learning
they learn from what the policy samples, so that they go on to draft what it will say; there, `detach` keeps their loss
away from the policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.schema.mtp import MtpSpec

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The label of a token that nothing is learnt from."""


class MultiToken:
    """Mixin for TRL's trainers, to be named first: `mtp` and `document_ends` are arguments of its own.

    Args:
        mtp: how the blocks are trained; not at all if not given. They stay as they are then.
        document_ends: tokens that end a document; see `model.mtp.Objective`.

    Raises:
        ValueError: the model has no prediction blocks, or is trained in float16, whose scaled gradients this loss
            would not be part of.
    """

    args: Any
    model: Any
    state: Any
    accelerator: Any
    _metrics: Any
    current_gradient_accumulation_steps: int

    def __init__(
        self, *args: Any, mtp: MtpSpec | None = None, document_ends: tuple[int, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mtp, self.objective = mtp, None
        from model.mtp import Objective, blocks

        if mtp is None:
            for block in blocks(self.model):
                block.requires_grad_(False)
            return
        if self.args.fp16:
            raise ValueError("mtp: float16 is not supported; set trainer.bf16")
        self.objective = Objective(self.model, mtp.detach, document_ends)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loss; the gradient of the blocks' loss joins it in the model."""
        self._log_speculation()
        if self.mtp is None or self.objective is None or not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        weight = self.mtp.weight_at(self.state.global_step, self.state.max_steps)
        labels_BT = _labels(inputs)
        targets = self._targets(labels_BT, kwargs.get("num_items_in_batch"))
        with self.objective.weighed(weight, targets, labels_BT):
            loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._log_depths(weight)
        return loss

    def _log_speculation(self) -> None:
        """How well the model's own rollouts were drafted, if they were."""
        told = getattr(self.model, "speculation", None)
        if told is None or not told.rounds:
            return
        self._metrics["train"]["speculation/acceptance"].append(told.acceptance)
        self._metrics["train"]["speculation/tokens_per_pass"].append(told.tokens_per_pass)
        self.model.speculation = type(told)()

    def _targets(self, labels_BT: Tensor, in_step: Any) -> Tensor:
        """Tokens of the whole optimizer step that this process's loss is divided by, as its trainer divides its own."""
        if in_step is None:
            return (labels_BT != IGNORED).sum() * self.current_gradient_accumulation_steps
        import torch

        from pipeline.training.expert_parallel import expert_ranks

        batches = self.accelerator.num_processes // expert_ranks() if self.args.average_tokens_across_devices else 1
        return torch.as_tensor(in_step) / batches

    def _log_depths(self, weight: float) -> None:
        import torch

        assert self.objective is not None
        rows = [[count.loss, count.tokens, count.agreed] for count in self.objective.read()]
        counted = torch.tensor([[float(value) for value in row] for row in rows], device=self.accelerator.device)
        metrics = self._metrics["train"]
        for depth, (loss, tokens, agreed) in enumerate(self.accelerator.reduce(counted).tolist(), 1):
            if tokens:
                metrics[f"mtp/loss_{depth}"].append(loss / tokens)
                metrics[f"mtp/acceptance_{depth}"].append(agreed / tokens)
        metrics["mtp/weight"].append(weight)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Blocks that leave the rest alone have a gradient norm, and a limit to it, of their own."""
        if self.mtp is None or self.objective is None or not self.mtp.detach:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        blocks = [weight for block in self.objective.blocks for weight in block.parameters()]
        ours = {id(weight) for weight in blocks}
        others = [weight for weight in model.parameters() if id(weight) not in ours]
        self.accelerator.clip_grad_norm_(blocks, self.args.max_grad_norm)
        return self.accelerator.clip_grad_norm_(others, self.args.max_grad_norm)


def _labels(inputs: dict[str, Any]) -> Tensor:
    """Labels of a batch: its own, or those of the completions that were sampled for it."""
    if "labels" in inputs:
        labels: Tensor = inputs["labels"]
        return labels
    import torch

    counted = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    completions = inputs["completion_ids"].masked_fill(counted == 0, IGNORED)
    return torch.cat([torch.full_like(inputs["prompt_ids"], IGNORED), completions], dim=1)
