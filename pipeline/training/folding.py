"""Old log-probabilities without a pass of their own.

TRL asks for them before training: they are the denominator of the policy's ratio, and with vLLM also the numerator of
the weights that correct for its slightly different probabilities. Where no optimizer step lies between sampling and
training (TRL's own condition: a generation batch serves no more than one step), they equal what the training pass
computes first of all. So they are taken from there, detached; stock TRL does so too, unless vLLM's weights are wanted.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.schema.efficiency import Efficiency
from pipeline.training.rows import loss_mask


class Folding:
    """Mixin for `GRPOTrainer`: `efficiency.fold_old_logprobs`.

    It also fills in old log-probabilities that a batch marks as unknown (NaN), whatever the switch says: see `refill`.
    """

    efficiency: Efficiency
    args: Any
    accelerator: Any
    model: Any
    use_vllm: bool
    vllm_importance_sampling_correction: bool
    _metrics: Any
    _in_training: dict[str, Any] | None = None
    """The micro-batch whose loss is being computed."""

    @property
    def on_policy(self) -> bool:
        """Whether the policy that trains on a generation batch is the one that sampled it."""
        return bool(
            self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.args.num_iterations) == 0
        )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        corrected = self.vllm_importance_sampling_correction
        if self.efficiency.fold_old_logprobs and self.on_policy:
            self.vllm_importance_sampling_correction = False  # it is what TRL computes them for
        try:
            return super()._generate_and_score_completions(inputs)  # type: ignore[misc, no-any-return]
        finally:
            self.vllm_importance_sampling_correction = corrected

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._in_training = dict(inputs)
        try:
            return super()._compute_loss(model, self._in_training)  # type: ignore[misc, no-any-return]
        finally:
            self._in_training = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps_BC, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        batch = self._in_training
        if batch is not None:
            if "old_per_token_logps" in batch:
                old_BC = batch["old_per_token_logps"]
                batch["old_per_token_logps"] = torch.where(old_BC.isnan(), logps_BC.detach(), old_BC)
            if self.use_vllm and self.vllm_importance_sampling_correction and "importance_sampling_ratio" not in batch:
                batch["importance_sampling_ratio"] = self._sampler_ratio(logps_BC.detach(), batch)
        return logps_BC, *others

    def _sampler_ratio(self, logps_BC: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Importance weights of the policy against its sampler, truncated or masked; see GRPOConfig.

        Tokens that the sampler could not score weigh 1. Shape (rows, tokens), or (rows, 1) for the sequence modes.
        """
        unit, _, action = self.args.vllm_importance_sampling_mode.partition("_")
        low, high = self.args.vllm_importance_sampling_clip_min, self.args.vllm_importance_sampling_clip_max
        mask_BC = loss_mask(batch)
        gap_BC = (logps_BC - batch["sampling_per_token_logps"]) * mask_BC
        known_BC = torch.nan_to_num(gap_BC, nan=0.0)
        ratio = torch.exp(known_BC.sum(-1, keepdim=True) if unit == "sequence" else known_BC)
        self._log_sampler(gap_BC.abs(), ratio.expand_as(gap_BC), mask_BC.bool())
        if low is None and high is None:
            return ratio
        bounded = ratio.clamp(min=low, max=high)
        return bounded if action == "truncate" else ratio.masked_fill(bounded != ratio, 0.0)

    def _log_sampler(self, gap_BC: torch.Tensor, ratio_BC: torch.Tensor, mask_BC: torch.Tensor) -> None:
        """TRL's metrics, of the weights before they are bounded; a gap that is NaN is of a token without a score."""
        gap, ratio = gap_BC[mask_BC & ~gap_BC.isnan()], ratio_BC[mask_BC]
        gap = gap if len(gap) else gap_BC.new_zeros(1)
        ratio = ratio if len(ratio) else ratio_BC.new_ones(1)
        mine = torch.stack([gap.mean(), gap.max(), ratio.min(), ratio.mean(), ratio.max()])
        mean, largest, low, weight, high = self.accelerator.gather(mine).view(-1, len(mine)).T
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["sampling/sampling_logp_difference/mean"].append(mean.mean().item())
        metrics["sampling/sampling_logp_difference/max"].append(largest.max().item())
        metrics["sampling/importance_sampling_ratio/min"].append(low.min().item())
        metrics["sampling/importance_sampling_ratio/mean"].append(weight.mean().item())
        metrics["sampling/importance_sampling_ratio/max"].append(high.max().item())
