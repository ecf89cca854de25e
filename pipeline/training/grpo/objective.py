"""The loss of GRPO and its relatives: one file, with the papers' equations. Axes: see the package.

For a question with rewards r_1 … r_G, and a token t of rollout i (GRPO, arXiv 2402.03300; R1, arXiv 2501.12948):

    A_i    = (r_i - mean r) / std r                                             `advantages`
    ρ_it   = π(o_it) / π_old(o_it)                                              `log_importance_ratio`
    ℓ_it   = -min(ρ_it A_i, clip(ρ_it, 1 - ε_low, 1 + ε_high) A_i)               `surrogate`
    w_it   = min(π_old(o_it) / π_sampler(o_it), C)                              `sampler_weights`
    k_it   = π_ref/π - log(π_ref/π) - 1                                         `divergence`
    L      = Σ_it ω_it (w_it ℓ_it + β k_it)                                     `Objective.loss`

ω, what a token counts, is all that "aggregation" means: grpo averages over the tokens of a rollout and then over
rollouts, dapo over all tokens, and so on (`token_weights`). As L is a sum over tokens, any part of a batch may be
computed by itself: each row carries its ω, and parts add up.

tests/training/test_packing.py holds every loss type against TRL's, losses and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.training.grpo.batch import Batch
from pipeline.training.metrics import Metrics

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Loss types whose ratio is clipped as PPO clips it (arXiv 1707.06347, equation 7)."""
LOG_RATIO_LIMIT = 20.0
"""VESPO's bound on a log-ratio: exp(20) is far beyond any use, and far below what overflows."""
SMALLEST_WEIGHT = 1e-8
"""VESPO's bound on a sequence's importance weight, so that its logarithm is finite."""
STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it; TRL's number."""


def advantages(
    rewards_BF: Tensor, weights_F: Tensor, group: int, scale: str, aggregation: str = "sum_then_normalize"
) -> Tensor:
    """How much better each rollout is than the others of its group; every tensor is that of all processes.

    Args:
        rewards_BF: NaN where a reward gave no score; a row without any score has advantage 0 and is not compared with.
        weights_F: of the reward functions.
        group: rollouts a group.
        scale: what the difference is divided by: the deviation of the `group` (GRPO), of the `batch`
            (PPO Lite, arXiv 2508.08221), or by `none` (Dr. GRPO, arXiv 2503.20783).
        aggregation: `sum_then_normalize`; or `normalize_then_sum`, each reward by itself (GDPO, arXiv 2601.05242).

    Returns:
        (B,) advantages, exactly 0 in a group whose rewards are equal.
    """
    if aggregation == "normalize_then_sum":
        each_GKF = rewards_BF.view(-1, group, rewards_BF.size(1))
        each_GKF = (each_GKF - each_GKF.nanmean(1, keepdim=True)) / (deviation(each_GKF, 1) + STD_FLOOR)
        rewards_BF = each_GKF.flatten(0, 1)
        group, scale = len(rewards_BF), "batch"
    total_B = total(rewards_BF, weights_F)
    total_GK = total_B.view(-1, group)
    mean_GK = total_GK.nanmean(dim=1, keepdim=True)
    std_GK = deviation(total_B, 0) if scale == "batch" else deviation(total_GK, 1)
    advantages_B = (total_GK - mean_GK).flatten()
    if scale != "none":
        advantages_B = advantages_B / (std_GK.expand_as(total_GK).flatten() + STD_FLOOR)
    # The mean of equal numbers may be off by a rounding error, and divided by STD_FLOOR that is no longer small.
    equal_B = equal_groups(total_B[:, None], group).repeat_interleave(group)
    return advantages_B.nan_to_num(nan=0.0).masked_fill(equal_B, 0.0)


def total(rewards_BF: Tensor, weights_F: Tensor) -> Tensor:
    """(B,) The weighted sum of a rollout's rewards; NaN where none gave a score."""
    return (rewards_BF * weights_F).nansum(dim=1).masked_fill(rewards_BF.isnan().all(dim=1), math.nan)


def equal_groups(rewards_BF: Tensor, group: int) -> Tensor:
    """(G,) True where all rollouts of a group that have a reward have the same one, so that it teaches nothing.

    Args:
        rewards_BF: NaN where a reward gave no score. A row without any score is not compared.
        group: rollouts a group.
    """
    unscored_GK = rewards_BF.isnan().all(dim=1).view(-1, group)
    total_GK = rewards_BF.nansum(dim=1).view(-1, group)
    highest_G = total_GK.masked_fill(unscored_GK, -torch.inf).amax(dim=1)
    return highest_G <= total_GK.masked_fill(unscored_GK, torch.inf).amin(dim=1)


def deviation(values: Tensor, dim: int) -> Tensor:
    """Sample standard deviation along a dimension, which is kept, of what is not NaN; 0 of a single value."""
    known = ~values.isnan()
    count = known.sum(dim, keepdim=True)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def log_importance_ratio(new_BC: Tensor, old_BC: Tensor, mask_BC: Tensor, level: str) -> Tensor:
    """log ρ: (B, C) for each token, or (B, 1), the mean over a sequence (GSPO, arXiv 2507.18071, equation 7)."""
    ratio_BC = new_BC - old_BC
    return ratio_BC if level == "token" else _mean_of_rows(ratio_BC, mask_BC)


def sampler_weights(
    old_BC: Tensor, sampler_BC: Tensor, mask_BC: Tensor, mode: str, low: float | None, high: float | None
) -> tuple[Tensor, Tensor]:
    """Importance weights of the policy against the engine that sampled, which computes in another way, or is stale.

    Args:
        old_BC: log π_old.
        sampler_BC: the engine's; NaN where it gave none, and such a token weighs 1.
        mask_BC: tokens that count.
        mode: `token_` or `sequence_` (the product over a sequence), then `truncate` (bounded) or `mask` (0 beyond).
        low, high: the bounds.

    Returns:
        The weights before and after they are bounded; (B, C), or (B, 1) for a sequence.
    """
    unit, _, action = mode.partition("_")
    gap_BC = ((old_BC - sampler_BC) * mask_BC).nan_to_num(nan=0.0)
    ratio = (gap_BC.sum(1, keepdim=True) if unit == "sequence" else gap_BC).exp()
    if low is None and high is None:
        return ratio, ratio
    bounded = ratio.clamp(min=low, max=high)
    return ratio, bounded if action == "truncate" else ratio.masked_fill(bounded != ratio, 0.0)


def divergence(new_BC: Tensor, reference_BC: Tensor) -> Tensor:
    """KL divergence from the reference, token by token: the estimator k3, unbiased and never negative."""
    gap_BC = reference_BC - new_BC
    return gap_BC.exp() - gap_BC - 1


def surrogate(ratio: Tensor, advantages_B1: Tensor, low: float, high: float, delta: float | None) -> Tensor:
    """PPO's clipped objective, negative; `delta` bounds the ratio of a bad rollout too (INTELLECT-2, 2505.07291)."""
    clipped = ratio.clamp(1 - low, 1 + high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.min(ratio * advantages_B1, clipped * advantages_B1)


def gamma_weights(
    advantages_B1: Tensor, log_ratio_BC: Tensor, mask_BC: Tensor, sampler: Tensor | None, args: Any
) -> Tensor:
    """(B, 1) VESPO's weights φ(w) = w^k e^{λ - λw} of a sequence's importance weight w (arXiv 2602.10693), detached."""
    floor = math.log(SMALLEST_WEIGHT)
    bounded_BC = log_ratio_BC.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) * mask_BC
    log_w_B1 = bounded_BC.sum(1, keepdim=True)
    if sampler is not None:
        log_w_B1 = log_w_B1 + sampler.log().clamp(floor, LOG_RATIO_LIMIT).sum(1, keepdim=True)
    log_w_B1 = log_w_B1.clamp(floor, LOG_RATIO_LIMIT)
    good_B1 = advantages_B1 >= 0
    k_B1 = torch.where(good_B1, args.vespo_k_pos, args.vespo_k_neg)
    lam_B1 = torch.where(good_B1, args.vespo_lambda_pos, args.vespo_lambda_neg).clamp(min=STD_FLOOR)
    phi_B1 = (lam_B1 + k_B1 * log_w_B1 - lam_B1 * log_w_B1.exp()).exp()
    return phi_B1.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def off_policy_mask(
    advantages_B1: Tensor, new_BC: Tensor, sampler_BC: Tensor, mask_BC: Tensor, threshold: float
) -> Tensor:
    """(B, 1) 0 for bad rollouts that the policy has left behind (DeepSeek-V3.2, arXiv 2512.02556, equation 9)."""
    gap_BC = (sampler_BC - new_BC.detach()).nan_to_num(nan=0.0)
    return ((advantages_B1 >= 0) | (_mean_of_rows(gap_BC, mask_BC) <= threshold)).to(mask_BC.dtype)


def token_weights(loss_type: str, mask_BC: Tensor, longest: int, step_tokens: float, micro_batches: int) -> Tensor:
    """(B, C) ω: what the loss of each token counts in the loss of an optimizer step, 0 for tokens that do not count.

    | loss type | a step's loss is |
    |---|---|
    | grpo, sapo | the mean over rollouts of the mean over their tokens |
    | luspo | the mean over rollouts of the sum over their tokens (arXiv 2602.05261) |
    | dr_grpo | the sum over tokens, by rollouts times the longest completion that is allowed (arXiv 2503.20783) |
    | dapo, cispo, vespo | the mean over all tokens of the step (arXiv 2503.14476) |
    | bnpo | the mean over micro-batches of the mean over their tokens |

    Args:
        loss_type: as TRL names it.
        mask_BC: tokens of a whole micro-batch that count.
        longest: tokens of the longest completion that is allowed.
        step_tokens: completion tokens of an optimizer step, a process.
        micro_batches: how many make an optimizer step.
    """
    rows = mask_BC.size(0)
    mask_BC = mask_BC.float()
    if loss_type in ("dapo", "cispo", "vespo"):
        return mask_BC / max(step_tokens, 1.0)
    if loss_type in ("grpo", "sapo"):
        weights_BC = mask_BC / mask_BC.sum(1, keepdim=True).clamp(min=1.0) / rows
    elif loss_type == "luspo":
        weights_BC = mask_BC / rows
    elif loss_type == "dr_grpo":
        weights_BC = mask_BC / (rows * longest)
    elif loss_type == "bnpo":
        weights_BC = mask_BC / mask_BC.sum().clamp(min=1.0)
    else:
        raise ValueError(f"unknown loss type {loss_type!r}")
    return weights_BC / micro_batches


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss with its settings.

    Attributes:
        args: TRL's GRPOConfig; its fields keep their names and meanings.
        corrected: whether tokens are weighed by the policy's probability over the engine's.
    """

    args: Any
    corrected: bool

    def loss(
        self,
        batch: Batch,
        new_BC: Tensor,
        entropy_BC: Tensor,
        metrics: Metrics,
        kept_BC: Tensor | None = None,
        entropy_bonus: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss of some rows of a micro-batch; those of all its rows add up.

        Args:
            batch: the rows, with their `weights_BC`.
            new_BC: log π of the policy in training, with gradient.
            entropy_BC: of its distribution at each token.
            metrics: what this pass is like goes there, under TRL's names.
            kept_BC: tokens that have a policy gradient at all; every one if not given.
            entropy_bonus: the bonus, of the entropies and of the tokens that count.
        """
        assert batch.weights_BC is not None
        args, mask_BC = self.args, batch.mask_BC
        now_BC = new_BC.detach()
        old_BC = now_BC if batch.old_BC is None else batch.old_BC.where(~batch.old_BC.isnan(), now_BC)
        advantages_B1 = batch.advantages_B[:, None]
        weight = self._sampler_weights(old_BC, batch, metrics)
        token_loss, log_rho = self._policy_loss(advantages_B1, new_BC, old_BC, mask_BC, weight, metrics)
        if args.off_policy_mask_threshold is not None:
            sampler_BC = old_BC if batch.sampler_BC is None else batch.sampler_BC
            token_loss = token_loss * off_policy_mask(
                advantages_B1, new_BC, sampler_BC, mask_BC, args.off_policy_mask_threshold
            )
        if kept_BC is not None:
            token_loss = token_loss * kept_BC
        if weight is not None and args.loss_type != "vespo":
            token_loss = token_loss * weight
        if args.beta:
            assert batch.reference_BC is not None
            kl_BC = divergence(new_BC, batch.reference_BC)
            if args.use_bias_correction_kl:  # DeepSeek-V3.2, equation 7
                kl_BC = kl_BC * log_rho.exp()
            token_loss = token_loss + args.beta * kl_BC
            metrics.mean("kl", kl_BC, mask_BC)
        metrics.mean("entropy", entropy_BC, mask_BC)
        # Padding may be NaN or infinite in what is known of log-probabilities, and 0 times that is not 0.
        loss = (token_loss.masked_fill(mask_BC == 0, 0.0) * batch.weights_BC).sum()
        if entropy_bonus is not None:
            metrics.total("policy_loss", loss, 1)
            loss = loss - entropy_bonus(entropy_BC, mask_BC if kept_BC is None else mask_BC * kept_BC)
        return loss

    def _policy_loss(
        self,
        advantages_B1: Tensor,
        new_BC: Tensor,
        old_BC: Tensor,
        mask_BC: Tensor,
        weight: Tensor | None,
        metrics: Metrics,
    ) -> tuple[Tensor, Tensor]:
        """ℓ, and log ρ; (B, C), or (B, 1) where ratios are those of sequences and nothing else is a token's."""
        args = self.args
        log_rho = log_importance_ratio(new_BC, old_BC, mask_BC, args.importance_sampling_level)
        ratio = log_rho.exp()
        low, high = args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high
        if args.loss_type in CLIPPED:
            _log_clipping(metrics, ratio, advantages_B1, mask_BC, low, high)
            return surrogate(ratio, advantages_B1, low, high, args.delta), log_rho
        if args.loss_type == "cispo":  # MiniMax-M1, arXiv 2506.13585, equation 4
            metrics.mean("cispo_clip_ratio", (ratio > high) & (advantages_B1 > 0), mask_BC)
            return -ratio.clamp(max=high).detach() * advantages_B1 * new_BC, log_rho
        if args.loss_type == "sapo":  # arXiv 2511.20347, equation 5
            good_B1 = advantages_B1 > 0
            heat_B1 = torch.where(good_B1, args.sapo_temperature_pos, args.sapo_temperature_neg)
            return -torch.sigmoid(heat_B1 * (ratio - 1)) * 4 / heat_B1 * advantages_B1, log_rho
        if args.loss_type == "vespo":
            phi_B1 = gamma_weights(advantages_B1, new_BC - old_BC, mask_BC, weight, args)
            metrics.mean("vespo/phi_seq_mean", phi_B1, mask_BC)
            return -phi_B1 * advantages_B1 * new_BC, log_rho
        raise ValueError(f"unknown loss type {args.loss_type!r}")

    def _sampler_weights(self, old_BC: Tensor, batch: Batch, metrics: Metrics) -> Tensor | None:
        """w, and TRL's metrics of it, before it is bounded; a token that the engine gave no score is not compared."""
        if not self.corrected or batch.sampler_BC is None:
            return None
        args, mask_BC = self.args, batch.mask_BC
        low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
        mode = args.vllm_importance_sampling_mode
        ratio, bounded = sampler_weights(old_BC, batch.sampler_BC, mask_BC, mode, low, high)
        gap_BC = (old_BC - batch.sampler_BC).abs()
        known_BC = mask_BC.bool() & ~gap_BC.isnan()
        metrics.mean("sampling/sampling_logp_difference/mean", gap_BC.nan_to_num(nan=0.0), known_BC)
        metrics.extreme("sampling/sampling_logp_difference/max", gap_BC[known_BC])
        counted = ratio[mask_BC.bool()] if ratio.shape == mask_BC.shape else ratio[mask_BC.any(1)]
        metrics.extreme("sampling/importance_sampling_ratio/min", counted)
        metrics.mean("sampling/importance_sampling_ratio/mean", ratio, mask_BC)
        metrics.extreme("sampling/importance_sampling_ratio/max", counted)
        metrics.effective("sampling/effective_sample_size", counted)
        return bounded


def _mean_of_rows(values_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """(B, 1) the mean over the tokens of a row that count."""
    return (values_BC * mask_BC).sum(1, keepdim=True) / mask_BC.sum(1, keepdim=True).clamp(min=1.0)


def _log_clipping(
    metrics: Metrics, ratio: Tensor, advantages_B1: Tensor, mask_BC: Tensor, low: float, high: float
) -> None:
    low_ = (ratio < 1 - low) & (advantages_B1 < 0)
    high_ = (ratio > 1 + high) & (advantages_B1 > 0)
    for name, clipped in (("low", low_), ("high", high_), ("region", low_ | high_)):
        metrics.mean(f"clip_ratio/{name}_mean", clipped, mask_BC)
    counted_B = mask_BC.any(1)
    metrics.extreme("clip_ratio/low_min", _mean_of_rows(low_.float().expand_as(mask_BC), mask_BC)[counted_B])
    metrics.extreme("clip_ratio/high_max", _mean_of_rows(high_.float().expand_as(mask_BC), mask_BC)[counted_B])
